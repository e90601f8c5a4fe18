//! Gated cross-attention: the visible context changes a token, the hidden context does not.

use burn::module::Param;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_nn::{ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};
use idefics_text::{
    AlphaType, Branches, ContextCache, ContextView, CrossAttentionConfig, CrossAttentionDecoder, DecoderStack,
    DecoupledEmbedding, DecoupledLinear, KvCache, TextConfig,
};

use crate::SAME;
use crate::common::{assert_close, part, random, values};

fn config(alpha_type: AlphaType) -> CrossAttentionConfig {
    CrossAttentionConfig {
        text: TextConfig {
            vocab_size: 40,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 4,
            num_attention_heads: 2,
            ..TextConfig::llama_7b()
        },
        additional_vocab_size: 2,
        cross_layer_interval: 2,
        qk_layer_norms: true,
        alpha_type,
        context_size: 10,
    }
}

/// Number of vectors in a part of the context.
const PART_LEN: usize = 3;

struct Model {
    config: CrossAttentionConfig,
    decoder: CrossAttentionDecoder,
    device: Device,
}

impl Model {
    fn new(alpha_type: AlphaType) -> Self {
        let device = Device::flex();
        let config = config(alpha_type);
        config.validate().unwrap();
        let decoder = config.init(&device).unwrap();
        Self { config, decoder, device }
    }

    fn context(&self, seed: u64, batch: usize, parts: usize) -> Tensor<3> {
        random(seed, [batch, parts * PART_LEN, self.config.context_size], &self.device)
    }

    fn tokens(&self, seed: u64, batch: usize, seq: usize) -> Tensor<3> {
        random(seed, [batch, seq, self.config.text.hidden_size], &self.device)
    }

    fn cache(&self, left_padding: Vec<usize>, context: Option<&Tensor<3>>, view: &ContextView) -> KvCache {
        let mut cache = self.config.text.cache(left_padding, 20);
        let layers = context.map(|context| self.decoder.context_key_values(context));
        cache.set_context(layers.map(|layers| ContextCache::new(layers, PART_LEN, view.clone(), 0)));
        cache
    }

    fn run(&self, tokens: &Tensor<3>, context: Option<&Tensor<3>>, view: &ContextView) -> Tensor<3> {
        let mut cache = self.cache(vec![0; tokens.dims()[0]], context, view);
        self.decoder.forward(tokens.clone(), &mut cache)
    }
}

/// Creates a view in which each token sees one of the `n_parts` parts, given by its index, or no part.
fn view(rows: &[&[Option<usize>]], n_parts: usize) -> ContextView {
    let seen = rows.iter().flat_map(|row| row.iter());
    let seen = seen.flat_map(|&latest| (0..n_parts).map(move |part| latest == Some(part))).collect();
    ContextView::new(rows.len(), rows[0].len(), n_parts, seen)
}

#[test]
fn hidden_context_has_no_effect() {
    for alpha_type in [AlphaType::Float, AlphaType::Vector] {
        let model = Model::new(alpha_type);
        let (tokens, context) = (model.tokens(1, 1, 4), model.context(2, 1, 2));
        let blind = view(&[&[None; 4]], 2);
        let alone = model.run(&tokens, None, &view(&[&[None; 4]], 0));
        assert_close("blind", &model.run(&tokens, Some(&context), &blind), &alone, SAME);

        // The second part is hidden from all tokens, so its vectors do not matter.
        let first = view(&[&[None, Some(0), Some(0), Some(0)]], 2);
        let output = model.run(&tokens, Some(&context), &first);
        let other = Tensor::cat(vec![part(&context, 1, 0, PART_LEN), model.context(9, 1, 1) * 50.0], 1);
        assert_close("hidden part", &model.run(&tokens, Some(&other), &first), &output, SAME);
        assert_close("before the part", &part(&output, 1, 0, 1), &part(&alone, 1, 0, 1), SAME);
        let changed = values(part(&output, 1, 1, 2) - part(&alone, 1, 1, 2));
        assert!(changed.iter().any(|difference| difference.abs() > 1e-3), "visible context must change a token");
    }
}

#[test]
fn decode_steps_inherit_the_view_of_the_last_token() {
    let model = Model::new(AlphaType::Vector);
    let (tokens, context) = (model.tokens(3, 2, 6), model.context(4, 2, 2));
    let latest: [&[Option<usize>]; 2] = [&[None, Some(0), Some(1), Some(1), Some(1), Some(1)], &[None; 6]];
    let whole = view(&latest, 2);
    let at_once = model.run(&tokens, Some(&context), &whole);
    let prompt = ContextView::new(2, 3, 2, [&whole.seen()[..6], &whole.seen()[12..18]].concat());
    let mut cache = model.cache(vec![0, 0], Some(&context), &prompt);
    let mut outputs = vec![model.decoder.forward(part(&tokens, 1, 0, 3), &mut cache)];
    for step in 3..6 {
        outputs.push(model.decoder.forward(part(&tokens, 1, step, step + 1), &mut cache));
    }
    assert_close("in steps", &Tensor::cat(outputs, 1), &at_once, SAME);
}

#[test]
fn chunked_prefill_matches_full_prefill() {
    let model = Model::new(AlphaType::Vector);
    let (tokens, context) = (model.tokens(3, 2, 6), model.context(4, 2, 2));
    let latest: [&[Option<usize>]; 2] = [&[None, Some(0), Some(1), Some(1), Some(0), Some(1)], &[None; 6]];
    let whole = view(&latest, 2);
    let at_once = model.run(&tokens, Some(&context), &whole);
    for n_tokens in [1, 4, 9] {
        let mut cache = model.cache(vec![0, 0], Some(&context), &whole);
        let chunked = model.decoder.forward_in_chunks(tokens.clone(), n_tokens, &mut cache);
        assert_close(&format!("{n_tokens} tokens at a time"), &chunked, &at_once, SAME);
    }
}

#[test]
fn rows_are_independent_of_the_context_of_other_rows() {
    let model = Model::new(AlphaType::Float);
    let (tokens, context) = (model.tokens(5, 2, 3), model.context(6, 2, 2));
    let rows: [&[Option<usize>]; 2] = [&[Some(0), Some(1), Some(1)], &[None, None, Some(0)]];
    let batch = model.run(&tokens, Some(&context), &view(&rows, 2));
    for (row, latest) in rows.into_iter().enumerate() {
        let alone =
            model.run(&part(&tokens, 0, row, row + 1), Some(&part(&context, 0, row, row + 1)), &view(&[latest], 2));
        assert_close("alone", &alone, &part(&batch, 0, row, row + 1), SAME);
    }
}

#[test]
fn extended_context_matches_full_context() {
    let model = Model::new(AlphaType::Float);
    let (tokens, context) = (model.tokens(7, 1, 4), model.context(8, 1, 2));
    let whole = view(&[&[Some(0), Some(0), Some(1), Some(1)]], 2);
    let at_once = model.run(&tokens, Some(&context), &whole);
    let first = view(&[&[Some(0), Some(0)]], 1);
    let mut cache = model.cache(vec![0], Some(&part(&context, 1, 0, PART_LEN)), &first);
    let before = model.decoder.forward(part(&tokens, 1, 0, 2), &mut cache);
    let (rest, more) = (whole.skip(2), model.decoder.context_key_values(&part(&context, 1, PART_LEN, 2 * PART_LEN)));
    let known = cache.take_context().unwrap();
    cache.set_context(Some(known.continued(1, Some(more), rest, 2)));
    let after = model.decoder.forward(part(&tokens, 1, 2, 4), &mut cache);
    assert_close("grown", &Tensor::cat(vec![before, after], 1), &at_once, SAME);
}

#[test]
fn branches_inherit_the_view_of_their_prompt() {
    let model = Model::new(AlphaType::Float);
    let (tokens, context) = (model.tokens(10, 1, 3), model.context(11, 1, 1));
    let seen = view(&[&[None, Some(0), Some(0)]], 1);
    let next = model.tokens(12, 1, 2);
    let mut cache = model.cache(vec![0], Some(&context), &seen);
    model.decoder.forward(tokens.clone(), &mut cache);
    let mut branches = Branches::new(&cache);
    branches.append(&[None, None]);
    let together = model.decoder.forward_branches(next.clone(), &branches, &mut cache);
    for branch in 0..2 {
        let mut cache = model.cache(vec![0], Some(&context), &seen);
        model.decoder.forward(tokens.clone(), &mut cache);
        let alone = model.decoder.forward(part(&next, 1, branch, branch + 1), &mut cache);
        assert_close("branch", &part(&together, 1, branch, branch + 1), &alone, SAME);
    }
}

#[test]
fn activations_are_cast_to_the_dtype_of_each_module() {
    /// Converts the modules with these name prefixes to BF16, like modules placed on a GPU.
    struct InBf16(&'static [&'static str]);
    impl ParameterMapper for InBf16 {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let is_converted = self.0.iter().any(|part| name.starts_with(part));
            if is_converted { param.map(|weight| weight.cast(DType::BF16)) } else { param }
        }
    }
    let mut model = Model::new(AlphaType::Float);
    let (tokens, context) = (model.tokens(13, 2, 4), model.context(14, 2, 2));
    let seen = view(&[&[None, Some(0), Some(1), Some(1)], &[None, None, Some(0), Some(0)]], 2);
    let exact = model.run(&tokens, Some(&context), &seen);
    for parts in [&["layers.1.", "gated_cross_attn_layers.1."][..], &["gated_cross_attn_layers.0.", "norm."]] {
        let exact_decoder = model.decoder.clone();
        model.decoder = map_parameters(model.decoder, &mut InBf16(parts));
        let rounded = model.run(&tokens, Some(&context), &seen).cast(DType::F32);
        let difference = values((rounded - exact.clone()).abs().max());
        assert!(difference[0] > 0.0 && difference[0] < 0.1, "{parts:?}: {difference:?}");
        model.decoder = exact_decoder;
    }
}

#[test]
fn decoupled_tables_match_a_joined_table() {
    let device = Device::flex();
    let embedding = DecoupledEmbedding::new(5, 3, 4, &device);
    let added = embedding.additional_embedding.as_ref().unwrap();
    let joined = Tensor::cat(vec![embedding.table.table(), added.table()], 0); // [8, 4]
    let ids = [7, 0, 4, 5, 6, 1];
    let input_ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [2, 3]), &device);
    let rows = Tensor::<1, Int>::from_data(TensorData::from(ids), &device);
    assert_close("joined", &embedding.forward(input_ids), &joined.select(0, rows).reshape([2, 3, 4]), 0.0);

    let head = DecoupledLinear::new(4, 5, 3, &device);
    let states = random::<3>(1, [1, 2, 4], &device);
    let logits = head.forward(states.clone());
    assert_eq!(logits.dims(), [1, 2, 8]);
    assert_close("own logits come first", &part(&logits, 2, 0, 5), &head.linear.forward(states), 0.0);
}

#[test]
fn tensor_names_match_the_checkpoint() {
    #[derive(Default)]
    struct Names(Vec<String>);
    impl ParameterVisitor for Names {
        fn visit<const D: usize>(&mut self, name: &str, _param: &Param<Tensor<D>>) {
            self.0.push(name.to_owned());
        }
    }
    let mut names = Names::default();
    visit_parameters(&Model::new(AlphaType::Vector).decoder, &mut names);
    for expected in [
        "embed_tokens.weight",
        "embed_tokens.additional_embedding.weight",
        "layers.3.self_attn.q_proj.weight",
        "gated_cross_attn_layers.1.alpha_cross_attn",
        "gated_cross_attn_layers.1.alpha_dense",
        "gated_cross_attn_layers.0.cross_attn.k_layer_norm.weight",
        "gated_cross_attn_layers.0.mlp.down_proj.weight",
        "norm.weight",
    ] {
        assert!(names.0.iter().any(|name| name == expected), "{expected} is not among {:?}", names.0);
    }
}

#[test]
fn rejects_interval_that_does_not_divide_the_layers() {
    let odd = CrossAttentionConfig { cross_layer_interval: 3, ..config(AlphaType::Float) };
    assert!(odd.validate().unwrap_err().to_string().contains("cross_layer_interval"));
}
