//! Quantised weights: compatibility with bitsandbytes, and the prediction of memory.

use burn::tensor::{DType, Device};
use idefics_checkpoint::{Checkpoint, PicklePolicy};
use idefics_generate::nn::PackedFormat;
use idefics_generate::{Idefics, ModelConfig, WeightFormat, WeightOptions, load_model};

use crate::common::{SAME, case, difference, next_logits, xtask_folder};

fn load(checkpoint: &str, weights: WeightOptions) -> Idefics {
    let folder = xtask_folder("checkpoints").join(checkpoint);
    Idefics::from_folder(&folder, &Device::flex(), weights, |_| ()).unwrap()
}

#[test]
fn bitsandbytes_folder_matches_own_quantisation() {
    let (_, samples) = case("quantized-on-disk");
    let weights = WeightOptions { quantize: "nf4".parse().unwrap(), double_quant: true, ..WeightOptions::default() };
    let [theirs, ours] = [load("small-quantized", WeightOptions::default()), load("small", weights)];
    let difference = difference(next_logits(&theirs, &samples), next_logits(&ours, &samples));
    assert!(difference <= SAME, "{difference:e}");
}

#[test]
fn weights_take_predicted_memory() {
    let device = Device::flex();
    let formats = PackedFormat::ALL.map(WeightFormat::Packed);
    for checkpoint in ["tiny-idefics2", "grid-980", "small-quantized", "idefics1-vector", "idefics1-tied"] {
        let folder = xtask_folder("checkpoints").join(checkpoint);
        let config = ModelConfig::from_folder(&folder).unwrap();
        for dtype in [None, Some(DType::F32), Some(DType::BF16)] {
            for quantize in formats.into_iter().chain([WeightFormat::None]) {
                if checkpoint == "small-quantized" && quantize != WeightFormat::None {
                    continue; // already quantised
                }
                let pickles = PicklePolicy::Allowed;
                let weights = WeightOptions { quantize, dtype, pickles, ..WeightOptions::default() };
                let files = Checkpoint::open_with(&folder, pickles).unwrap();
                let planned = config.memory(Some(&files), &device, weights).unwrap();
                let model = load_model(&folder, &device, weights, |_| ()).unwrap();
                assert_eq!(planned.total(), model.weight_bytes() as u64, "{checkpoint} {weights}");
            }
        }
    }
}
