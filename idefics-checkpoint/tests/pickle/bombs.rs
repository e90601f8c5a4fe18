//! Tests of small programs that would use a lot of memory or time without limits.

use idefics_checkpoint::pickle::PickleFault;

use super::assert_fault;
use super::programs::{DATA, fault_in, run, tensor};
use super::read;
use super::write::{FALSE, dict, entries, floats, global, int, ints, no_hooks, program, text, tuple, zip};
use crate::memory::measure;

#[test]
fn rejects_recursive_shared_and_deep_dictionaries() {
    // d = {}; d["a"] = d
    let itself = b"}q\0X\x01\0\0\0ah\0s".to_vec();
    assert_fault!(fault_in(itself), PickleFault::NotATensor { .. }, "\"a\"", "elsewhere");
    // Seven dictionaries, each contained twice in the next. The number of names doubles with every dictionary.
    let mut bomb = dict(&[]);
    for index in 0..6 {
        let (first, again) = ([text("a"), bomb, vec![b'q', index]].concat(), [text("b"), vec![b'h', index]].concat());
        bomb = [b"}(".to_vec(), first, again, b"u".to_vec()].concat();
    }
    assert_fault!(fault_in(bomb), PickleFault::NotATensor { .. }, "\"a.a.a.a.a.b\"", "elsewhere");
    let mut deep = tensor();
    for _ in 0..9 {
        deep = dict(&[("a", deep)]);
    }
    assert_fault!(fault_in(deep), PickleFault::Limit { .. }, "levels of nested dictionaries");
}

#[test]
fn limits_memory_of_small_programs() {
    let repeat = |unit: &[u8], count: usize| unit.repeat(count);
    let long_text = [b"X".as_slice(), &u32::MAX.to_le_bytes()].concat();
    let puts: Vec<u8> = (0..1_100_000u32).flat_map(|index| [&b"r"[..], &index.to_le_bytes()].concat()).collect();
    let bombs = [
        ("values on the stack", repeat(b"N", 1_000_000)),
        ("values on the stack", repeat(b"(", 1_000_000)),
        ("values on the stack", [b"Nq\0".to_vec(), repeat(b"h\0", 1_000_000)].concat()),
        ("values in the memo", [b"N".to_vec(), puts].concat()),
        ("values in the memo", [b"N".to_vec(), repeat(b"\x94", 1_100_000)].concat()),
        // Deeply nested tuples.
        ("values in data.pkl", [b"N".to_vec(), repeat(b"\x85", 4_100_000)].concat()),
        ("values in data.pkl", [b"Nq\0".to_vec(), repeat(b"h\0h\0\x87", 2_100_000)].concat()),
        ("values in data.pkl", [b"}".to_vec(), repeat(b"X\0\0\0\0}s", 2_000_000)].concat()),
        ("values in data.pkl", [b"}".to_vec(), repeat(b"X\0\0\0\0}X\0\0\0\0Nss", 1_110_000), b".".to_vec()].concat()),
        ("bytes in a string", long_text),
        ("bytes in a string", [b"X".as_slice(), &65_537u32.to_le_bytes(), &[b'a'; 65_537]].concat()),
    ];
    for (word, bomb) in bombs {
        let file = zip(&entries(&[b"\x80\x02".to_vec(), bomb].concat(), &DATA));
        let (fault, allocated, kept) = measure(|| read(&file).unwrap_err());
        assert_fault!(fault, PickleFault::Limit { .. }, word);
        // `allocated` is the sum of all allocations, including those freed when a growing vector is reallocated.
        assert!(allocated < 400 << 20, "{word}: {allocated} bytes");
        assert!(kept < 1 << 20, "{word}: {kept} bytes");
    }
}

#[test]
fn limits_the_number_of_tensors() {
    // The program creates one tensor after another from a function and arguments in the memo.
    let arguments = tuple(&[floats(6), int(0), ints(&[6]), ints(&[1]), FALSE.to_vec(), no_hooks()]);
    let first = [global("torch._utils", "_rebuild_tensor_v2"), b"q\0".to_vec(), arguments, b"q\x01R".to_vec()].concat();
    let tensors = |count: usize| {
        let next = (1..count).flat_map(|index| [&text(&format!("layers.{index}.w")), &b"h\0h\x01Rs"[..]].concat());
        [b"}".to_vec(), text("w"), first.clone(), b"s".to_vec(), next.collect()].concat()
    };
    assert_eq!(run(&program(tensors(100_000))).unwrap().len(), 100_000);
    assert_fault!(fault_in(tensors(100_001)), PickleFault::Limit { .. }, "100001 tensors", "100000");
}
