//! Tests of randomly damaged files: the result is an error, or tensors whose bytes are in the file.

use proptest::prelude::*;

use super::write::{Entry, entries, zip};
use super::{FIXTURES, fixture, read};
use crate::memory::measure;

/// Reads a file and checks that the memory used is proportional to its size. Returns whether the file was accepted.
fn check(file: &[u8]) -> bool {
    let (result, allocated, _) = measure(|| read(file));
    assert!(allocated < (1 << 20) + 64 * file.len(), "{allocated} bytes for a file of {}", file.len());
    result.is_ok()
}

/// Reads the entries of a valid file, so that they can be written again with correct checksums.
fn unpack(file: &[u8]) -> Vec<Entry> {
    let end = file.len() - 22;
    let number = |at: usize, width: usize| (0..width).rev().fold(0, |sum, i| sum << 8 | usize::from(file[at + i]));
    let mut at = number(end + 16, 4);
    let mut entries = Vec::new();
    for _ in 0..number(end + 10, 2) {
        let name = &file[at + 46..at + 46 + number(at + 28, 2)];
        let local = number(at + 42, 4);
        let data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
        let name_text = std::str::from_utf8(name).unwrap();
        entries.push(Entry::new(name_text, &file[data..data + number(at + 24, 4)]));
        at += 46 + name.len() + number(at + 30, 2);
    }
    entries
}

/// Generates random positions, and for each position the bits to flip in the byte there.
fn flips() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..6)
}

fn flip(bytes: &mut [u8], flips: &[(prop::sample::Index, u8)]) {
    for (index, bits) in flips {
        let at = index.index(bytes.len());
        bytes[at] ^= bits;
    }
}

/// Generates a random opcode with operands that are likely to be valid.
fn operation() -> impl Strategy<Value = Vec<u8>> {
    let plain = b"()}NtsuRQb\x85\x86\x87\x88\x89\x93\x94".iter().map(|&opcode| vec![opcode]);
    let names = [
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ctorch._utils\n_rebuild_tensor_v3\n",
        "ctorch\nuint16\n",
        "ctorch._utils\n_rebuild_parameter\n",
        "ccollections\nOrderedDict\n",
        "ctorch\nFloatStorage\n",
        "ctorch.storage\nUntypedStorage\n",
    ];
    let texts = ["storage", "0", "cpu", "w", "_metadata"].map(super::write::text);
    let fixed: Vec<Vec<u8>> = plain.chain(names.map(|name| name.as_bytes().to_vec())).chain(texts).collect();
    prop_oneof![
        4 => prop::sample::select(fixed),
        2 => Just(vec![0x94]),
        2 => (0..8u8).prop_map(|index| vec![b'h', index]),
        2 => (0..8u8).prop_map(|int| vec![b'K', int]),
        1 => any::<i64>().prop_map(super::write::int),
        1 => Just(super::write::floats(6)),
        1 => Just(super::write::view(super::write::floats(6), 0, &[2, 3], &[3, 1])),
    ]
}

#[test]
fn repacked_fixtures_are_still_valid() {
    for name in FIXTURES {
        let file = fixture(&format!("{name}.bin"));
        let count = read(&file).unwrap().len();
        assert_eq!(read(&zip(&unpack(&file))).unwrap().len(), count, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn survives_bit_flips_in_files(name in prop::sample::select(&FIXTURES[..]), flips in flips()) {
        let mut file = fixture(&format!("{name}.bin"));
        flip(&mut file, &flips);
        check(&file);
    }

    #[test]
    fn survives_bit_flips_in_programs(name in prop::sample::select(&FIXTURES[..]), flips in flips()) {
        let mut entries = unpack(&fixture(&format!("{name}.bin")));
        let program = entries.iter_mut().find(|entry| entry.name.ends_with(b"/data.pkl")).unwrap();
        flip(&mut program.data, &flips);
        *program = Entry::new(std::str::from_utf8(&program.name).unwrap(), &program.data);
        check(&zip(&entries));
    }

    #[test]
    fn survives_random_programs(operations in prop::collection::vec(operation(), 0..60)) {
        let program = [b"\x80\x02}".to_vec(), operations.concat(), b".".to_vec()].concat();
        check(&zip(&entries(&program, &[("0", &[0; 24])])));
    }

    #[test]
    fn random_views_match_the_definition(
        offset in -2..10i64,
        shape in prop::collection::vec(-1..5i64, 0..4),
        strides in prop::collection::vec(-1..8i64, 0..4),
    ) {
        use super::write::{dict, file, storage, view};
        let data: Vec<u8> = (0..24).collect();
        let tensor = view(storage("ByteStorage", "0", 24), offset, &shape, &strides);
        let file = file(dict(&[("w", tensor)]), &[("0", &data)]);
        if check(&file) {
            // The expected elements are computed one by one from the definition of a view.
            let tensor = &read(&file).unwrap()[0];
            let mut expected = vec![offset];
            for (size, stride) in shape.iter().zip(&strides) {
                expected = expected.iter().flat_map(|start| (0..*size).map(move |i| start + i * stride)).collect();
            }
            let expected: Vec<u8> = expected.into_iter().map(|item| data[item as usize]).collect();
            prop_assert_eq!(&*tensor.bytes(&file).unwrap(), &expected[..]);
        }
    }

    #[test]
    fn survives_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check(&bytes);
        check(&[b"PK\x03\x04".as_slice(), &bytes].concat());
        let program = [b"\x80\x04".as_slice(), &bytes].concat();
        check(&zip(&entries(&program, &[("0", &[0; 24])])));
    }
}
