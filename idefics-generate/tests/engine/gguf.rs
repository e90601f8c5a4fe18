//! Weights in GGUF blocks: answers alone, in company, and with proposed tokens.

use idefics_checkpoint::PicklePolicy;
use idefics_checkpoint::gguf::GgufMix;
use idefics_generate::engine::{Engine, EngineOptions, Request, Speculation, Ticket};
use idefics_generate::{WeightOptions, quantize_to_gguf};
use idefics_kernels::Isa;
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use super::common::{Case, Fixture, Random, collect, engine_options};
use super::speculation::{Copier, copying, eager, run, text, up_to};
use crate::common::{FileTensor, copy, edit, edit_tensors};

/// Width of the decoder: one block of the types with the longest blocks.
const WIDTH: usize = 256;

/// Returns the mixes whose matrices are stored in blocks.
fn mixes() -> impl Iterator<Item = GgufMix> {
    GgufMix::ALL.into_iter().filter(|mix| mix.of_vision() == GgufMix::Q8_0)
}

/// Returns `tiny-smolvlm` with random text weights, whose matrices are wide enough for blocks of any type.
fn wide_checkpoint() -> TempDir {
    let folder = copy("tiny-smolvlm");
    edit(folder.path(), "config.json", |config| {
        let sizes = json!({"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": WIDTH / 4, "intermediate_size": 2 * WIDTH});
        config["text_config"].as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    });
    let mut random = Random(4);
    let mut widen = |(name, dtype, shape, data): &mut FileTensor| {
        // Sizes of the narrow checkpoint, by the role of the axis.
        let wide = |size: usize| match (size, name.as_str()) {
            (24, _) => WIDTH,
            (36, name) if name.contains("mlp") => 2 * WIDTH,
            (36, _) => WIDTH,
            (12, _) => WIDTH / 2,
            (other, _) => other,
        };
        assert_eq!(*dtype, Dtype::F32);
        *shape = shape.iter().map(|size| wide(*size)).collect();
        let n_values = shape.iter().product::<usize>();
        let scale = (3.0 / shape[shape.len() - 1] as f32).sqrt();
        let values = (0..n_values).map(|_| match shape.len() {
            1 => 1.0, // a norm
            _ => scale * (random.below(1 << 16) as f32 / f32::from(1_u16 << 15) - 1.0),
        });
        *data = values.flat_map(f32::to_le_bytes).collect();
    };
    edit_tensors(folder.path(), |tensors| {
        tensors.iter_mut().filter(|(name, ..)| !name.contains("vision_model")).for_each(&mut widen);
    });
    folder
}

/// Calls `test` with a model in each mix.
fn for_each_mix(mut test: impl FnMut(GgufMix, &Fixture)) {
    let source = wide_checkpoint();
    for mix in mixes() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let device = burn::tensor::Device::flex();
        quantize_to_gguf(source.path(), &target, mix, PicklePolicy::default(), &device, |_, _| Ok(())).unwrap();
        test(mix, &Fixture::of_folder(&target, WeightOptions::default()));
    }
}

/// Whether few rows have the bits of one row without [`EngineOptions::reproducible`] too.
fn few_rows_are_like_one() -> bool {
    matches!(Isa::best(), Isa::Avx512 | Isa::Amx)
}

#[test]
fn answers_have_the_same_bits_alone_and_in_company() {
    for_each_mix(|mix, fixture| {
        let mut random = Random(17);
        let cases: Vec<Case> = (0..8).map(|_| fixture.case(&mut random)).collect();
        let reproducible: &[bool] = if few_rows_are_like_one() { &[false, true] } else { &[true] };
        for &reproducible in reproducible {
            let options = EngineOptions { reproducible, ..engine_options() };
            let mut engine = Engine::of(&fixture.model, options.clone()).unwrap();
            let tickets: Vec<Ticket> = cases.iter().map(|case| engine.submit(fixture.request(case)).unwrap()).collect();
            while engine.step().unwrap() {}
            for (case, ticket) in cases.iter().zip(&tickets) {
                let alone = fixture.alone_with(case, options.clone());
                assert_eq!(collect(ticket).unwrap(), alone, "{}, {reproducible}, {:?}", mix.name(), case.options);
            }
        }
    });
}

#[test]
fn proposed_tokens_change_no_bits() {
    let (mut fewer, mut plain) = (0, 0);
    for_each_mix(|mix, fixture| {
        let mut random = Random(3);
        for number in 0..3 {
            let text = text(fixture, &mut random);
            let case = copying(fixture, &text, &mut random);
            for reproducible in [false, true] {
                let answer = |speculation| {
                    let copier = Box::new(Copier::new(&text, [7, 1000][number % 2]));
                    let request = Request { processors: vec![copier], ..fixture.request(&case) };
                    run(fixture.model.model(), EngineOptions { reproducible, ..eager(speculation) }, request)
                };
                let (expected, steps) = answer(Speculation::Off);
                let mut all = vec![Speculation::Exact];
                if reproducible || few_rows_are_like_one() {
                    all.push(up_to(7));
                }
                for speculation in all {
                    let (found, n_steps) = answer(speculation);
                    let what = format!("{}, {reproducible}, {speculation:?}: {:?}", mix.name(), case.options);
                    assert_eq!(found, expected, "{what}");
                    (fewer, plain) = (fewer + steps - n_steps, plain + steps);
                }
            }
        }
    });
    assert!(10 * fewer > plain, "{fewer} of {plain} steps were saved");
}
