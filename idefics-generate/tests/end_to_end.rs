//! Runs `Idefics` from model files to text.

use burn::tensor::{DType, Device};
use idefics_generate::{FinishReason, GenerationConfig, Idefics};

use crate::common::{case, difference, greedy, load, never, next_logits, no_splitting, text_sample, xtask_folder};

/// Returns the expected token ids of a case, including padding and prompt.
fn expected_sequences(case: &str) -> Vec<Vec<i64>> {
    let bytes = std::fs::read(xtask_folder("cases").join(case).join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("generate.greedy.sequences").unwrap();
    let ids: Vec<i64> = tensor.data().as_chunks::<8>().0.iter().map(|&id| i64::from_le_bytes(id)).collect();
    ids.chunks(tensor.shape()[1]).map(<[i64]>::to_vec).collect()
}

#[test]
fn batch_with_zero_to_two_images_matches_reference_tokens() {
    let (json, samples) = case("two-images");
    let options: GenerationConfig = serde_json::from_value(json["generate"]["greedy"].clone()).unwrap();
    let answers = load("odd-heads").generate(&samples, &no_splitting(), &options, never()).unwrap();
    let expected = expected_sequences("two-images");
    let prompt_len = expected[0].len() - 12;
    for (answer, expected) in answers.iter().zip(expected) {
        let generated: Vec<i64> = answer.token_ids.iter().map(|&id| i64::from(id)).collect();
        assert!(expected[prompt_len..].starts_with(&generated), "{generated:?} {expected:?}");
        let stopped = matches!(generated.last(), Some(2 | 476));
        assert_eq!(answer.finish_reason, if stopped { FinishReason::Stop } else { FinishReason::Length });
        assert_eq!(answer.usage.completion_tokens, generated.len());
        assert_eq!(generated.len() == 12, !stopped || generated.len() == 12);
    }
    assert_eq!(answers.iter().map(|answer| answer.usage.image_tokens).collect::<Vec<_>>(), [10, 5, 0]);
}

#[test]
fn streamed_chunks_match_text() {
    let model = load("odd-heads");
    let sample = text_sample("User:<image>Describe this.<end_of_utterance>\nAssistant:", &["wide.png"]);
    let mut streamed = String::new();
    let answer = model
        .generate_streaming(&sample, &no_splitting(), &greedy(24), never(), |chunk| streamed.push_str(chunk))
        .unwrap();
    assert_eq!(streamed, answer.text);
    let iterated: String =
        model.stream(&sample, &no_splitting(), &greedy(24), never()).unwrap().map(Result::unwrap).collect();
    assert_eq!(iterated, answer.text);
    let alone = model.generate(&[sample], &no_splitting(), &greedy(24), never()).unwrap();
    assert_eq!((&alone[0].text, &alone[0].token_ids), (&answer.text, &answer.token_ids));
}

#[test]
fn cancel_ends_within_one_step() {
    let model = load("odd-heads");
    let sample = text_sample("User: Hello<end_of_utterance>\nAssistant:", &[]);
    let options = GenerationConfig { eos_token_id: Some(idefics_generate::EosTokenId::Many(vec![])), ..greedy(1000) };
    let cancel = never();
    let mut chunks = 0;
    let answer = model
        .generate_streaming(&sample, &no_splitting(), &options, &cancel, |_| {
            chunks += 1;
            if chunks == 3 {
                cancel.cancel();
            }
        })
        .unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    assert_eq!(answer.token_ids.len(), 3);
}

#[test]
fn half_precision_matches_f32_within_tolerance() {
    let folder = xtask_folder("checkpoints/odd-heads");
    let sample = text_sample("User:<image>Describe this.<end_of_utterance>\nAssistant:", &["wide.png"]);
    let full = next_logits(&load("odd-heads"), std::slice::from_ref(&sample));
    let scale = full.clone().abs().max().into_scalar::<f32>();
    for (dtype, share) in [(DType::BF16, 0.1), (DType::F16, 0.02)] {
        let model = Idefics::from_folder(&folder, &Device::flex(), dtype, |_| ()).unwrap();
        let logits = next_logits(&model, std::slice::from_ref(&sample));
        assert!(difference(full.clone(), logits) <= share * scale, "{dtype:?}");
        let samples = [sample.clone(), text_sample("Hi", &[])];
        let answers = model.generate(&samples, &no_splitting(), &greedy(3), never()).unwrap();
        assert_eq!(answers.len(), 2);
    }
}
