//! Tests of programs that do anything other than describe tensors.

use idefics_checkpoint::pickle::{PickleFault, PickleTensor};

use super::write::{
    FALSE, call, dict, entries, file, floats, global, int, ints, no_hooks, program, storage, text, tuple, view, zip,
};
use super::{assert_fault, read};

pub(super) const DATA: [(&str, &[u8]); 1] = [("0", &[0; 24])];

/// Reads a file whose program is exactly these bytes.
pub(super) fn run(program: &[u8]) -> Result<Vec<PickleTensor>, PickleFault> {
    read(&zip(&entries(program, &DATA)))
}

/// Returns the fault of a program that returns `value`.
pub(super) fn fault_in(value: Vec<u8>) -> PickleFault {
    run(&program(value)).unwrap_err()
}

pub(super) fn tensor() -> Vec<u8> {
    view(floats(6), 0, &[2, 3], &[3, 1])
}

fn rebuild(name: &str, arguments: &[Vec<u8>]) -> Vec<u8> {
    dict(&[("w", call(global("torch._utils", name), arguments))])
}

#[test]
fn accepts_minimal_program() {
    assert_eq!(run(&program(dict(&[("w", tensor())]))).unwrap()[0].shape, [2, 3]);
}

#[test]
fn rejects_names_outside_the_allow_list() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "defaultdict"),
        ("torch", "load"),
        ("torch", "FloatyStorage"),
        ("torch", "floatstorage"),
        ("torch", "ComplexFloatStorage"),
        ("torch", "QInt8Storage"),
        ("torch.cuda", "FloatStorage"),
        ("torch", "Tensor"),
        ("torch", "float32"),
        ("torch", "UntypedStorage"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch.serialization", "os.system"),
        ("torch._utils._rebuild_tensor_v2", ""),
        ("", "torch._utils._rebuild_tensor_v2"),
        ("numpy", "ndarray"),
    ] {
        let shell = call(global(module, name), &[text("rm -rf /")]);
        assert_fault!(fault_in(shell.clone()), PickleFault::Global { .. }, module, name, "is not allowed");
        assert_fault!(fault_in(dict(&[("w", shell)])), PickleFault::Global { .. }, name);
        let stack_global = [text(module), text(name), b"\x93".to_vec()].concat();
        assert_fault!(fault_in(stack_global), PickleFault::Global { .. }, module, name);
    }
    let long = [text(&"m".repeat(60_000)), text(&"n".repeat(60_000)), b"\x93".to_vec()].concat();
    assert_fault!(fault_in(long), PickleFault::Global { .. });
    for global in [b"cno line".to_vec(), b"cmodule\nname".to_vec(), b"c\xff\nname\n".to_vec(), [b'c'; 600].to_vec()] {
        assert_fault!(fault_in(global), PickleFault::Program { .. }, "a module and a name");
    }
    assert_fault!(fault_in([int(1), int(2), b"\x93".to_vec()].concat()), PickleFault::Program { .. }, "a module");
}

#[test]
fn rejects_calls_of_other_values() {
    let callees = [
        (global("torch", "FloatStorage"), "Storage"),
        (global("torch", "uint16"), "Dtype"),
        (text("print"), "a string"),
        (int(1), "an integer"),
        (tensor(), "a tensor"),
        (dict(&[]), "a dictionary"),
        (b"N".to_vec(), "None"),
        (b")".to_vec(), "a tuple"),
        (floats(6), "a storage"),
        (FALSE.to_vec(), "a boolean"),
    ];
    for (callee, kind) in callees {
        assert_fault!(fault_in(call(callee, &[int(1)])), PickleFault::Call { .. }, kind, "OrderedDict");
    }
    let ordered = global("collections", "OrderedDict");
    assert_fault!(fault_in(call(ordered.clone(), &[dict(&[])])), PickleFault::Program { .. }, "(a dictionary)");
    assert_fault!(fault_in([ordered, b"NR".to_vec()].concat()), PickleFault::Program { .. }, "OrderedDict");
}

#[test]
fn rejects_wrong_arguments() {
    let good = || [floats(6), int(0), ints(&[6]), ints(&[1]), FALSE.to_vec(), no_hooks()];
    assert!(run(&program(rebuild("_rebuild_tensor_v2", &good()))).is_ok());
    let hooks = dict(&[("hook", global("torch._utils", "_rebuild_parameter"))]);
    for wrong in 0..6 {
        for value in [b"N".to_vec(), text("0"), global("torch", "uint16"), hooks.clone()] {
            let mut arguments = good();
            arguments[wrong] = value;
            let fault = fault_in(rebuild("_rebuild_tensor_v2", &arguments));
            assert_fault!(fault, PickleFault::Program { .. }, "expected (");
        }
    }
    let negated = [good().to_vec(), vec![dict(&[("neg", b"\x88".to_vec())])]].concat();
    for arguments in [&negated[..], &good()[..5], &[], &vec![int(0); 1000]] {
        assert_fault!(fault_in(rebuild("_rebuild_tensor_v2", arguments)), PickleFault::Program { .. }, "expected (");
    }
    let parameter = |arguments: &[Vec<u8>]| fault_in(rebuild("_rebuild_parameter", arguments));
    for arguments in [
        vec![],
        vec![tensor()],
        vec![tensor(), FALSE.to_vec(), hooks.clone()],
        vec![floats(6), FALSE.to_vec(), no_hooks()],
        vec![text("w"), FALSE.to_vec(), no_hooks()],
        vec![tensor(), FALSE.to_vec(), no_hooks(), dict(&[])],
    ] {
        assert_fault!(parameter(&arguments), PickleFault::Program { .. }, "expected (a tensor, a boolean, no hooks)");
    }
}

#[test]
fn untyped_storages_require_an_element_type() {
    let bytes = || storage("UntypedStorage", "0", 24);
    let v3 = |storage: Vec<u8>, dtype: Vec<u8>| {
        let arguments = [storage, int(0), ints(&[12]), ints(&[1]), FALSE.to_vec(), no_hooks(), dtype];
        rebuild("_rebuild_tensor_v3", &arguments)
    };
    assert!(run(&program(v3(bytes(), global("torch", "uint16")))).is_ok());
    assert_fault!(fault_in(dict(&[("w", view(bytes(), 0, &[24], &[1]))])), PickleFault::Program { .. }, "untyped");
    let expected = "expected (an untyped storage";
    assert_fault!(fault_in(v3(floats(6), global("torch", "uint16"))), PickleFault::Program { .. }, expected);
    assert_fault!(fault_in(v3(bytes(), global("torch", "HalfStorage"))), PickleFault::Program { .. }, expected);
    assert_fault!(fault_in(v3(bytes(), text("uint16"))), PickleFault::Program { .. }, expected);
    for name in ["uint17", "float32", "complex32", "bits8", "float4_e2m1fn_x2"] {
        assert_fault!(fault_in(v3(bytes(), global("torch", name))), PickleFault::Global { .. }, name);
    }
}

#[test]
fn rejects_malformed_storage_descriptions() {
    let id = |fields: &[Vec<u8>]| dict(&[("w", [tuple(fields), b"Q".to_vec()].concat())]);
    let class = || global("torch", "FloatStorage");
    for fields in [
        vec![],
        vec![text("storage"), class(), text("0"), text("cpu")],
        vec![text("module"), class(), text("0"), text("cpu"), int(6)],
        vec![text("storage"), text("FloatStorage"), text("0"), text("cpu"), int(6)],
        vec![text("storage"), class(), int(0), text("cpu"), int(6)],
        vec![text("storage"), class(), text("0"), text("cpu"), text("6")],
        // The sixth field is view metadata, which PyTorch wrote in 2017.
        vec![text("storage"), class(), text("0"), text("cpu"), int(6), b"N".to_vec()],
    ] {
        assert_fault!(fault_in(id(&fields)), PickleFault::Program { .. }, "a storage described by (");
    }
    assert_fault!(fault_in([int(1), b"Q".to_vec()].concat()), PickleFault::Program { .. }, "a storage described by ()");
    let long = view(storage("FloatStorage", &"0".repeat(2000), 6), 0, &[6], &[1]);
    assert_fault!(fault_in(dict(&[("w", long)])), PickleFault::Limit { .. }, "key of a storage");
}

#[test]
fn rejects_values_other_than_tensors() {
    let values = [
        (int(3), "an integer"),
        (b"N".to_vec(), "None"),
        (text("3"), "a string"),
        (b"\x88".to_vec(), "a boolean"),
        (tuple(&[tensor()]), "a tuple"),
        (floats(6), "a storage"),
        (global("torch", "uint16"), "a name"),
    ];
    for (value, kind) in values {
        let fault = fault_in(dict(&[("state_dict", dict(&[("w", tensor())])), ("epoch", value.clone())]));
        assert_fault!(fault, PickleFault::NotATensor { .. }, "\"epoch\"", kind, "state_dict");
        assert_fault!(fault_in(value), PickleFault::NotADictionary { .. }, kind, "a dictionary of tensors");
    }
    assert_fault!(fault_in(tensor()), PickleFault::NotADictionary { .. }, "holds a tensor; expected a dictionary");
    let keyed = [b"}".to_vec(), int(3), tensor(), b"s".to_vec()].concat();
    assert_fault!(fault_in(keyed), PickleFault::Program { .. }, "an integer as the key");
}

#[test]
fn rejects_duplicate_and_long_tensor_names() {
    let twice = [("w", tensor()), ("w", tensor())];
    assert_fault!(fault_in(dict(&twice)), PickleFault::DuplicateTensor { .. }, "\"w\"");
    let dotted = [("a.b", tensor()), ("a", dict(&[("b", tensor())]))];
    assert_fault!(fault_in(dict(&dotted)), PickleFault::DuplicateTensor { .. }, "\"a.b\"");
    let long = [("n".repeat(1000), dict(&[(&"m".repeat(100), tensor())]))];
    assert_fault!(fault_in(dict(&[(&long[0].0, long[0].1.clone())])), PickleFault::Limit { .. }, "1101 bytes");
}

#[test]
fn accepts_metadata_as_the_only_attribute() {
    let with_state = |object: Vec<u8>, state: Vec<u8>| [object, state, b"b".to_vec()].concat();
    let metadata = || dict(&[("_metadata", no_hooks())]);
    assert!(read(&file(with_state(no_hooks(), metadata()), &[])).unwrap().is_empty());
    for (object, state) in [
        (dict(&[]), metadata()),
        (tensor(), metadata()),
        (no_hooks(), b"N".to_vec()),
        (no_hooks(), dict(&[])),
        (no_hooks(), dict(&[("__class__", no_hooks())])),
        (no_hooks(), dict(&[("_metadata", int(1))])),
        (global("collections", "OrderedDict"), metadata()),
    ] {
        assert_fault!(fault_in(with_state(object, state)), PickleFault::Program { .. }, "`_metadata` alone");
    }
    // A tensor hidden in the attributes is not listed, so its storage is unused.
    let hidden = with_state(no_hooks(), dict(&[("_metadata", dict(&[("w", tensor())]))]));
    assert_fault!(fault_in(hidden), PickleFault::StorageUnused { count: 1, .. }, "data/0");
}

#[test]
fn rejects_other_opcodes() {
    let accepted = b".(NJKMX})tsucQRbqrhj\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95";
    for opcode in 0..=255u8 {
        let fault = run(&[0x80, 2, opcode]).unwrap_err();
        if accepted.contains(&opcode) && opcode != 0x80 {
            assert!(matches!(fault, PickleFault::Program { .. } | PickleFault::NotATensor { .. }), "{fault:?}");
        } else {
            assert_fault!(fault, PickleFault::Opcode { at: 2, .. }, &format!("{opcode:#04x}"));
        }
    }
    for (opcode, name) in [
        (b'G', "BINFLOAT"),
        (b']', "EMPTY_LIST"),
        (0x81, "NEWOBJ"),
        (b'i', "INST"),
        (b'o', "OBJ"),
        (b'P', "PERSID"),
        (0x82, "EXT1"),
        (0x92, "NEWOBJ_EX"),
        (0x8b, "LONG4"),
        (0x8d, "BINUNICODE8"),
        (0x96, "BYTEARRAY8"),
        (0xff, "unknown"),
    ] {
        assert_fault!(run(&[0x80, 2, opcode]).unwrap_err(), PickleFault::Opcode { .. }, name);
    }
}

#[test]
fn rejects_malformed_programs() {
    let faults: [(&[u8], &str); 25] = [
        (b"", "protocol 2 to 5"),
        (b"}.", "protocol 2 to 5"),
        (b"\x80", "protocol 2 to 5"),
        (b"\x80\x01}.", "protocol 1"),
        (b"\x80\x06}.", "protocol 6"),
        (b"\x80\x02", "ends in the middle"),
        (b"\x80\x02}", "ends in the middle"),
        (b"\x80\x02.", "1 values"),
        (b"\x80\x02}}.", "1 values and marks"),
        (b"\x80\x02(}.", "1 values and marks"),
        (b"\x80\x02}.}", "1 bytes after"),
        (b"\x80\x02K", "ends in the middle"),
        (b"\x80\x02J\0\0\0", "in the middle"),
        (b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\0.", "9 bytes"),
        (b"\x80\x02t", "a mark"),
        (b"\x80\x02(\x85", "1 values"),
        (b"\x80\x02}(\x85", "1 values"),
        (b"\x80\x02(u", "a dictionary"),
        (b"\x80\x02}(Nu", "without a value"),
        (b"\x80\x02h\x07.", "memo entry 7, but there are 0"),
        (b"\x80\x02}q\x01.", "memo entry 1; expected 0"),
        (b"\x80\x02}q\0q\0.", "memo entry 0; expected 1"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "memo entry 4294967295"),
        (b"\x80\x04\x95\xff\0\0\0\0\0\0\0}.", "a frame of 255"),
        (b"\x80\x02X\x02\0\0\0\xff\xfe.", "not UTF-8"),
    ];
    for (program, word) in faults {
        assert_fault!(run(program).unwrap_err(), PickleFault::Program { .. }, word);
    }
    assert_fault!(run(b"\x80\x02N}(Nu.").unwrap_err(), PickleFault::Program { .. });
    assert_fault!(run(b"\x80\x02}(q\0.").unwrap_err(), PickleFault::Program { .. }, "1 values");
}

#[test]
fn rejects_program_truncated_anywhere() {
    let program = program([dict(&[("w", tensor()), ("v", tensor())]), b"q\0".to_vec()].concat());
    assert!(run(&program).is_ok());
    for length in 0..program.len() {
        assert_fault!(run(&program[..length]).unwrap_err(), PickleFault::Program { .. });
    }
}
