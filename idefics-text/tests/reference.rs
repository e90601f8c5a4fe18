use burn::tensor::{Device, Tensor};
use idefics_text::{Decoder, DecoderObserver, DecoderStack, TextConfig};

use crate::common::{Case, Model, assert_close, part};
use crate::{PREFIX, REFERENCE, mistral_defaults};

/// Loads a decoder from a model folder. Loading is strict, so all parameters come from the folder.
pub(crate) fn decoder(model: &Model, device: &Device) -> (TextConfig, Decoder) {
    let config = model.section_over("text_config", &mistral_defaults());
    config.validate().unwrap();
    let decoder = model.load(config.init(device).unwrap(), PREFIX);
    (config, decoder)
}

/// Records the intermediate results of a decoder.
#[derive(Default)]
struct Recorder {
    hidden_states: Vec<Tensor<3>>,
    attentions: Vec<Tensor<4>>,
}

impl DecoderObserver for Recorder {
    fn hidden_states(&mut self, index: usize, hidden_states: &Tensor<3>) {
        assert_eq!(index, self.hidden_states.len());
        self.hidden_states.push(hidden_states.clone());
    }

    fn attentions(&mut self, layer_idx: usize, weights: &dyn Fn() -> Tensor<4>) {
        assert_eq!(layer_idx, self.attentions.len());
        self.attentions.push(weights());
    }
}

#[test]
fn all_cases_match_the_reference() {
    let device = Device::flex();
    for case in Case::all_with("hidden_states.0") {
        let (config, decoder) = decoder(&case.model, &device);
        let inputs_embeds = case.floats::<3>("hidden_states.0", &device);
        let [_, seq, _] = inputs_embeds.dims();
        let left_padding = case.left_padding();
        let mut recorder = Recorder::default();
        let mut cache = config.cache(left_padding.clone(), seq);
        let output = decoder.forward_observed(inputs_embeds, &mut cache, &mut recorder);
        assert_eq!(recorder.hidden_states.len(), config.num_hidden_layers + 1);
        assert_close("returned", &output, recorder.hidden_states.last().unwrap(), 0.0);

        for (row, &padding) in left_padding.iter().enumerate() {
            for (index, states) in recorder.hidden_states.iter().enumerate() {
                let name = format!("hidden_states.{index}");
                let real = |states: &Tensor<3>| part(&part(states, 0, row, row + 1), 1, padding, seq);
                let expected = real(&case.floats(&name, &device));
                assert_close(&format!("{}, row {row}, {name}", case.name), &real(states), &expected, REFERENCE);
            }
            for (index, weights) in recorder.attentions.iter().enumerate() {
                let name = format!("attentions.{index}");
                if case.has(&name) {
                    let rows = |weights: &Tensor<4>| part(&part(weights, 0, row, row + 1), 2, padding, seq);
                    let real = |weights: &Tensor<4>| part(&rows(weights), 3, padding, seq);
                    let expected = real(&case.floats(&name, &device));
                    assert_close(&format!("{}, row {row}, {name}", case.name), &real(weights), &expected, REFERENCE);
                }
            }
        }
    }
}

#[test]
fn some_case_has_attentions_with_a_window() {
    let windows = Case::all_with("attentions.0").iter().any(|case| {
        let config = case.model.section_over("text_config", &mistral_defaults());
        config.sliding_window.is_some_and(|window| window < case.integers("processor.input_ids").1[1])
    });
    assert!(windows);
}

#[test]
fn embeddings_match_the_reference() {
    let device = Device::flex();
    let case = Case::named("text-only"); // no embeddings are replaced by image features
    let (_, decoder) = decoder(&case.model, &device);
    assert_close("embed", &decoder.embed(case.input_ids(&device)), &case.floats("hidden_states.0", &device), 0.0);
}
