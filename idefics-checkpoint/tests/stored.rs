//! Tests of quantised weights: round trips through a file, and errors that name the faulty tensor.

use half::bf16;
use idefics_checkpoint::{
    Checkpoint, CheckpointError, NamedTensor, QuantDtype, ShardWriter, StoredFormat, StoredWeightError,
    four_bit_tensors, int8_tensors, q4_tensors, write_atomically,
};
use idefics_kernels::formats::{FourBit, FourBitType, Int8, PackedFormat, Q4, Weight};
use tempfile::TempDir;

const DIMS: [usize; 2] = [20, 100];

fn weights() -> Vec<f32> {
    (0..DIMS[0] * DIMS[1]).map(|index| ((index * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

fn written(tensors: Vec<NamedTensor<'static>>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut shards = ShardWriter::new(folder.path());
    tensors.into_iter().try_for_each(|tensor| shards.push(tensor)).unwrap();
    shards.finish().unwrap();
    folder
}

fn four_bit(kind: FourBitType, double_quant: bool) -> (FourBit<'static>, Vec<NamedTensor<'static>>) {
    let weight = FourBit::quantize(kind, &weights(), DIMS[0], DIMS[1]).unwrap();
    let tensors = four_bit_tensors("up.weight", weight.clone(), QuantDtype::Bfloat16, double_quant).unwrap();
    (weight, tensors)
}

#[test]
fn quantised_weights_round_trip() {
    let int8 = Int8::quantize(&weights(), DIMS[0], DIMS[1]).unwrap();
    let q4 = Q4::quantize(&weights(), DIMS[0], DIMS[1]).unwrap();
    let (nf4, nf4_tensors) = four_bit(FourBitType::Nf4, false);
    let (fp4, fp4_tensors) = four_bit(FourBitType::Fp4, false);
    let cases: [(Weight<'_>, Vec<NamedTensor<'static>>, PackedFormat); 4] = [
        (int8.clone().into(), int8_tensors("up.weight", int8), PackedFormat::Int8),
        (q4.clone().into(), q4_tensors("up.weight", q4), PackedFormat::Q4),
        (nf4.into(), nf4_tensors, PackedFormat::FourBit(FourBitType::Nf4)),
        (fp4.into(), fp4_tensors, PackedFormat::FourBit(FourBitType::Fp4)),
    ];
    for (weight, tensors, format) in cases {
        let folder = written(tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stored = checkpoint.stored("up.weight").unwrap();
        assert_eq!(stored.kind.packed_format(), Some(format));
        assert_eq!(1 + stored.companions.len(), checkpoint.tensors().count(), "{format:?}");
        assert_eq!(checkpoint.read_packed("up.weight", &stored, DIMS).unwrap(), weight, "{format:?}");
        assert_eq!(checkpoint.packed_formats().collect::<Vec<_>>(), [format]);
    }
}

#[test]
fn double_quantised_scales_are_approximately_equal() {
    let (weight, tensors) = four_bit(FourBitType::Nf4, true);
    let folder = written(tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let stored = checkpoint.stored("up.weight").unwrap();
    assert_eq!(stored.companions.len(), 5);
    let Weight::FourBit(read) = checkpoint.read_packed("up.weight", &stored, DIMS).unwrap() else { panic!("NF4") };
    assert_eq!(read.codes(), weight.codes());
    for (read, written) in read.absmax().iter().zip(weight.absmax()) {
        assert!((read - written).abs() < 0.01, "{read} instead of {written}");
    }
}

#[test]
fn errors_name_missing_and_mistyped_companions() {
    let missing = |part: &str| {
        let (_, mut tensors) = four_bit(FourBitType::Nf4, false);
        tensors.retain(|tensor| !tensor.name.ends_with(part));
        let folder = written(tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stored = checkpoint.stored("up.weight").unwrap();
        checkpoint.read_packed("up.weight", &stored, DIMS).map(drop)
    };
    for part in ["absmax", "quant_map"] {
        let Err(CheckpointError::Quantized { name, source, .. }) = missing(part) else { panic!("{part}") };
        assert_eq!(name, "up.weight");
        assert!(matches!(*source, StoredWeightError::PartMissing { name } if name == format!("up.weight.{part}")));
    }

    let q4 = Q4::quantize(&weights(), DIMS[0], DIMS[1]).unwrap();
    let mut tensors = q4_tensors("up.weight", q4);
    tensors[1].dtype = safetensors::Dtype::F16;
    let folder = written(tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let stored = checkpoint.stored("up.weight").unwrap();
    let error = checkpoint.read_packed("up.weight", &stored, DIMS).unwrap_err();
    assert!(error.to_string().ends_with("`up.weight.scales` is F16; expected BF16"), "{error}");
}

#[test]
fn plain_tensor_is_dense() {
    let bytes: Vec<u8> = [1.0, 2.0].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    let tensor =
        NamedTensor { name: "norm".to_owned(), dtype: safetensors::Dtype::BF16, shape: vec![2], bytes: bytes.into() };
    let folder = written(vec![tensor]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.stored("norm").unwrap().kind, StoredFormat::Dense);
    assert!(checkpoint.stored("other").is_none() && !checkpoint.is_quantized());
}

#[test]
fn failed_write_keeps_the_existing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    write_atomically(&path, |file| std::io::Write::write_all(file, b"{}")).unwrap();
    let error = write_atomically(&path, |file| {
        std::io::Write::write_all(file, b"half")?;
        Err(std::io::Error::other("no more"))
    });
    assert!(matches!(error, Err(CheckpointError::Write { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"{}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
