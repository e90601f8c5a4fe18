//! Tests of views, and of the storages that they must fit.

use idefics_checkpoint::pickle::PickleFault;

use super::write::{dict, file, floats, storage, view};
use super::{assert_fault, fault_of, read};

/// Builds a file with a single tensor `w`, a view of a storage with six floats.
fn viewed(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    file(dict(&[("w", view(floats(6), offset, shape, strides))]), &[("0", &[0; 24])])
}

#[test]
fn accepts_views_within_their_storage() {
    for (offset, shape, strides, contiguous) in [
        (0, &[6][..], &[1][..], true),
        (5, &[], &[], true),
        (5, &[1], &[1000], true), // the stride of an axis of size 1 is irrelevant
        (0, &[2, 3], &[3, 1], true),
        (0, &[3, 2], &[1, 3], false),
        (1, &[2, 2], &[2, 2], false), // elements overlap, but there are no more than in the storage
        (0, &[1, 6], &[0, 1], true),
        (6, &[0], &[1], true),
        (0, &[0, 1 << 40, 1 << 40], &[1, 1, 1], true),
        (0, &[1 << 62, 0], &[1, 1], true),
        (0, &[1; 16], &[1; 16], true),
    ] {
        let file = viewed(offset, shape, strides);
        let tensor = &read(&file).unwrap()[0];
        assert_eq!(tensor.is_contiguous(), contiguous, "{shape:?} {strides:?}");
        assert_eq!(tensor.num_elements(), shape.iter().product::<i64>() as usize);
    }
}

#[test]
fn rejects_views_outside_their_storage() {
    let (max, min) = (i64::MAX, i64::MIN);
    for (offset, shape, strides) in [
        (0, &[7][..], &[1][..]),
        (1, &[6], &[1]),
        (6, &[], &[]),
        (7, &[0], &[1]),
        (0, &[2, 3], &[4, 1]), // the last row is out of bounds
        (0, &[3, 2], &[3, 1]),
        (0, &[2], &[6]),
        (0, &[2], &[max]),
        (max, &[2], &[max]),
        (max, &[], &[]),
        (0, &[max], &[1]),
        (0, &[1 << 32, 1 << 32], &[1, 1]),
        (0, &[1 << 21, 1 << 21, 1 << 22], &[0, 0, 0]),
        (0, &[max, max, 0], &[1, 1, 1]),
    ] {
        let fault = fault_of(&viewed(offset, shape, strides));
        assert_fault!(fault, PickleFault::View { .. }, "\"w\"", "does not fit its storage of 6 elements");
    }
    for (offset, shape, strides, word) in [
        (0, &[-1][..], &[1][..], "a size of -1"),
        (0, &[2, -3], &[3, 1], "a size of -3"),
        (0, &[min], &[1], "a size of -9223372036854775808"),
        (0, &[2, 3], &[3, -1], "a stride of -1"),
        (5, &[6], &[-1], "a stride of -1"),
        (-1, &[6], &[1], "an offset of -1"),
        (min, &[6], &[1], "an offset of"),
        (0, &[2, 3], &[1], "2 sizes and 1 strides"),
        (0, &[], &[1], "0 sizes and 1 strides"),
        (0, &[1; 17], &[1; 17], "17 dimensions"),
    ] {
        assert_fault!(fault_of(&viewed(offset, shape, strides)), PickleFault::View { .. }, "\"w\"", word);
    }
}

#[test]
fn rejects_views_that_repeat_elements() {
    for (shape, strides) in
        [(&[7][..], &[0][..]), (&[1 << 40], &[0]), (&[1 << 20, 1 << 20], &[0, 0]), (&[3, 6], &[0, 1])]
    {
        assert_fault!(fault_of(&viewed(0, shape, strides)), PickleFault::View { .. }, "repeats", "contiguous()");
    }
}

#[test]
fn rejects_sizes_and_strides_that_are_not_integers() {
    use super::write::{FALSE, call, global, int, ints, no_hooks, text, tuple};
    let rebuild = |shape: Vec<u8>, strides: Vec<u8>| {
        let arguments = [floats(6), int(0), shape, strides, FALSE.to_vec(), no_hooks()];
        let tensor = call(global("torch._utils", "_rebuild_tensor_v2"), &arguments);
        fault_of(&file(dict(&[("w", tensor)]), &[("0", &[0; 24])]))
    };
    assert_fault!(rebuild(tuple(&[text("6")]), ints(&[1])), PickleFault::View { .. }, "a string as a size");
    assert_fault!(rebuild(ints(&[6]), tuple(&[b"N".to_vec()])), PickleFault::View { .. }, "None as a stride");
}

#[test]
fn rejects_storages_of_the_wrong_length() {
    for length in [0, 1, 20, 23, 25, 28, 48] {
        let data = vec![0; length];
        let file = file(dict(&[("w", view(floats(6), 0, &[6], &[1]))]), &[("0", &data)]);
        let fault = fault_of(&file);
        assert_fault!(fault, PickleFault::StorageLength { .. }, "\"w\"", "data/0", "expected 24", &length.to_string());
    }
    for length in [-1, i64::MIN, i64::MAX] {
        let file = file(dict(&[("w", view(floats(length), 0, &[6], &[1]))]), &[("0", &[0; 24])]);
        assert_fault!(fault_of(&file), PickleFault::View { .. } | PickleFault::StorageLength { .. }, "\"w\"");
    }
}

#[test]
fn rejects_conflicting_descriptions_of_a_storage() {
    let two = |first: Vec<u8>, second: Vec<u8>, data: &[u8]| {
        let (first, second) = (view(first, 0, &[0], &[1]), view(second, 0, &[0], &[1]));
        read(&file(dict(&[("v", first), ("w", second)]), &[("0", data)]))
    };
    let fault = two(floats(6), storage("IntStorage", "0", 6), &[0; 24]).unwrap_err();
    assert_fault!(fault, PickleFault::StorageType { .. }, "F32", "I32", "data/0");
    let fault = two(floats(6), floats(5), &[0; 24]).unwrap_err();
    assert_fault!(fault, PickleFault::Program { .. }, "5 elements here, but 6 elements earlier");
    // PyTorch lets empty tensors of different types share a storage.
    assert_eq!(two(floats(0), storage("IntStorage", "0", 0), &[]).unwrap().len(), 2);
}
