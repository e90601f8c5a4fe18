//! Tests of layers in GGUF blocks: they stay in the memory map, are multiplied as stored, and are looked up row by row.

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_checkpoint::Checkpoint;
use idefics_kernels::formats::{Blocks, GgufType};
use idefics_nn::{Embedding, Linear, LoadModule, LoadOptions, PackedFormat, Quantization, RmsNorm, Weight};
use tempfile::TempDir;

use crate::common::{assert_close, values};
use crate::memory::measure;

/// The parts of a one-layer text model that are in the GGUF file of these tests.
#[derive(Module, Debug)]
struct Text {
    embed_tokens: Embedding,
    norm: RmsNorm,
    q_proj: Linear,
    v_proj: Linear,
    head: Linear,
}

const VOCAB: usize = 512;
const WIDTH: usize = 256;

fn text(device: &Device) -> Text {
    let linear = |d_out| Linear::new_without_bias(WIDTH, d_out, device);
    let (embed_tokens, norm) = (Embedding::new(VOCAB, WIDTH, device), RmsNorm::new(WIDTH, 1e-5, device));
    Text { embed_tokens, norm, q_proj: linear(WIDTH), v_proj: linear(64), head: linear(VOCAB) }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Writes a GGUF file with matrices of `kind` to a new folder.
fn file(kind: GgufType) -> TempDir {
    let weights = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 37 % 211) as f32 - 105.0) / 500.0).collect() };
    let matrix = |rows: usize| Blocks::quantize(kind, &weights(rows * WIDTH), rows, WIDTH).unwrap().into_bytes();
    let norm: Vec<u8> = (0..WIDTH).flat_map(|_| 1f32.to_le_bytes()).collect();
    let tensors = [
        ("token_embd.weight", vec![WIDTH, VOCAB], kind, matrix(VOCAB)),
        ("output_norm.weight", vec![WIDTH], GgufType::F32, norm),
        ("blk.0.attn_q.weight", vec![WIDTH, WIDTH], kind, matrix(WIDTH)),
        ("blk.0.attn_v.weight", vec![WIDTH, 64], kind, matrix(64)),
    ];
    let numbers = [("block_count", 1), ("embedding_length", WIDTH as u32), ("attention.head_count", 4)];
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((1 + numbers.len() as u64).to_le_bytes());
    out.extend([string("general.architecture"), 8u32.to_le_bytes().to_vec(), string("llama")].concat());
    for (key, value) in numbers {
        out.extend([string(&format!("llama.{key}")), [4u32.to_le_bytes(), value.to_le_bytes()].concat()].concat());
    }
    let mut data = Vec::new();
    for (name, dims, kind, bytes) in tensors {
        out.extend(string(name));
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        out.extend(kind.id().to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf"), out).unwrap();
    folder
}

/// Loads each part with the prefix that it has in the checkpoint.
fn load(folder: &Path, dtype: Option<DType>, device: &Device) -> Text {
    try_load(folder, LoadOptions { dtype, ..LoadOptions::default() }, device)
}

fn try_load(folder: &Path, options: LoadOptions<'_>, device: &Device) -> Text {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let at = |prefix: &'static str| LoadOptions { prefix, ..options.clone() };
    let Text { embed_tokens, norm, q_proj, v_proj, head } = text(device);
    #[derive(Module, Debug)]
    struct Attention {
        q_proj: Linear,
        v_proj: Linear,
    }
    #[derive(Module, Debug)]
    struct Top {
        embed_tokens: Embedding,
        norm: RmsNorm,
        lm_head: Linear,
    }
    const TIED: &[(&str, &str)] = &[("model.text_model.lm_head.weight", "model.text_model.embed_tokens.weight")];
    let top = LoadOptions { tied: TIED, ..at("model.text_model.") };
    let top = checkpoint.load(Top { embed_tokens, norm, lm_head: head }, &top, |_| ()).unwrap();
    let attention = at("model.text_model.layers.0.self_attn.");
    let attention = checkpoint.load(Attention { q_proj, v_proj }, &attention, |_| ()).unwrap();
    let (Top { embed_tokens, norm, lm_head: head }, Attention { q_proj, v_proj }) = (top, attention);
    Text { embed_tokens, norm, q_proj, v_proj, head }
}

fn rows(n: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..n * WIDTH).map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0).collect();
    Tensor::from_data(TensorData::new(values, [n, WIDTH]), device)
}

/// Returns the values of a matrix in the file. The rows have the order of the checkpoint.
fn dense(folder: &Path, name: &str, device: &Device) -> Tensor<2> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let entry = checkpoint.tensor(&format!("model.text_model.{name}.weight")).unwrap();
    let mut values = vec![0.0; entry.num_elements()];
    entry.read_rows(0..entry.shape[0], &mut values);
    Tensor::from_data(TensorData::new(values, entry.shape.clone()), device)
}

fn ids(device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from([[5i64, 0, 511], [7, 7, 300]]), device)
}

#[test]
fn blocks_are_multiplied_and_looked_up_as_stored() {
    for kind in [GgufType::Q4_0, GgufType::Q4_K, GgufType::Q6_K, GgufType::Q8_0] {
        let folder = file(kind);
        for device in [Device::flex(), Device::flex().autodiff()] {
            for dtype in [None, Some(DType::F32), Some(DType::BF16)] {
                let model = load(folder.path(), dtype, &device);
                let matrix = |name: &str| dense(folder.path(), name, &device);
                for (name, layer) in [
                    ("layers.0.self_attn.q_proj", &model.q_proj),
                    ("layers.0.self_attn.v_proj", &model.v_proj),
                    ("embed_tokens", &model.head),
                ] {
                    let Weight::Packed(weight) = layer.weight() else { panic!("{name} must stay in blocks") };
                    assert_eq!(weight.format(), PackedFormat::Blocks(kind));
                    for n in [1, 3, 20] {
                        let expected = rows(n, &device).matmul(matrix(name).transpose());
                        assert_close(name, &layer.forward(rows(n, &device)), &expected, 1e-4);
                    }
                }
                let table = matrix("embed_tokens");
                let expected = table.clone().select(0, ids(&device).reshape([6])).reshape([2, 3, WIDTH]);
                assert_eq!(values(model.embed_tokens.forward(ids(&device))), values(expected));
                assert_eq!(values(model.embed_tokens.table()), values(table));
            }
        }
    }
}

#[test]
fn only_matrices_with_reordered_rows_are_copied() {
    let folder = file(GgufType::Q8_0);
    let (model, _, kept) = measure(|| load(folder.path(), None, &Device::flex()));
    let copied = WIDTH * GgufType::Q8_0.row_bytes(WIDTH).unwrap();
    assert!((copied..copied + 30_000).contains(&kept), "{kept} bytes kept, expected about {copied}");
    drop(model);
    // The predicted memory must agree with the measured memory.
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let (module, device) = (text(&Device::flex()), Device::flex());
    let options = |prefix| LoadOptions { prefix, ..LoadOptions::default() };
    let table = options("model.text_model.embed_tokens.").memory(&module.embed_tokens, Some(&checkpoint), &device);
    assert_eq!((table.taken, table.mapped), (0, 2 * copied as u64));
    let q = options("model.text_model.layers.0.self_attn.q_proj.").memory(&module.q_proj, Some(&checkpoint), &device);
    assert_eq!((q.taken, q.mapped), (copied as u64, 0));
}

#[test]
fn blocks_are_quantised_again_on_request() {
    let folder = file(GgufType::Q8_0);
    let quantize = Quantization {
        format: PackedFormat::Int8,
        double_quant: false,
        modules_to_not_convert: vec!["lm_head".to_owned()],
    };
    let options = LoadOptions { quantize: Some(quantize), ..LoadOptions::default() };
    let model = try_load(folder.path(), options, &Device::flex());
    let Weight::Packed(weight) = model.v_proj.weight() else { panic!("v_proj must be quantised") };
    assert_eq!(weight.format(), PackedFormat::Int8);
    let Weight::Packed(head) = model.head.weight() else { panic!("the tied head shares the table") };
    assert_eq!(head.format(), PackedFormat::Blocks(GgufType::Q8_0));
}

#[test]
fn blocks_are_saved_as_numbers() {
    let folder = file(GgufType::Q4_1);
    let device = Device::flex();
    let model = load(folder.path(), None, &device);
    let out = tempfile::tempdir().unwrap();
    idefics_nn::checkpoint::save(&model, &out.path().join("model.safetensors"), DType::F32, &[]).unwrap();
    let again = Checkpoint::open(out.path()).unwrap().load(text(&device), &LoadOptions::default(), |_| ()).unwrap();
    assert_eq!(values(again.q_proj.forward(rows(1, &device))).len(), WIDTH);
    assert_eq!(values(again.embed_tokens.table()), values(model.embed_tokens.table()));
}
