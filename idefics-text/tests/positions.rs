//! Positions and masks computed on the device from a slot tensor.

use burn::tensor::{DType, Device, Int, Tensor};
use idefics_text::{DecoderStack, KvCache, TextConfig};
use proptest::prelude::*;

const HEAD_DIM: usize = 8;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slot_positions_match_positions_of_the_cache(
        left_padding in prop::collection::vec(0usize..12, 1..4),
        past in 1usize..20,
        more in 0usize..6,
        sliding_window in prop::option::of(prop_oneof![1usize..9, (1usize << 31) - 2..(1 << 31) + 9, Just(usize::MAX)]),
    ) {
        let device = Device::flex();
        let config = TextConfig {
            vocab_size: 10,
            hidden_size: 2 * HEAD_DIM,
            intermediate_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            sliding_window,
            ..TextConfig::llama_7b()
        };
        let decoder = config.init(&device).unwrap();
        let batch = left_padding.len();
        let capacity = past + 1 + more;
        let mut cache = KvCache::new(1, left_padding, capacity);
        let states = Tensor::zeros([batch, 2, past, HEAD_DIM], &device);
        cache.layer(0).append(states.clone(), states);
        cache.advance(past);

        let inputs_embeds = Tensor::zeros([batch, 1, 2 * HEAD_DIM], &device);
        let expected = decoder.positions(&inputs_embeds, &cache);
        let slot = Tensor::<1, Int>::from_data([past as i32], (&device, DType::I32));
        let ours = decoder.slot_positions(&inputs_embeds, &cache).unwrap().at(&slot);

        let ones = Tensor::<4>::ones([batch, 1, 1, HEAD_DIM], &device);
        let read = |states: Tensor<4>| states.into_data().try_into_vec::<f32>().unwrap();
        prop_assert_eq!(read(ours.rotary.rotate(ones.clone())), read(expected.rotary.rotate(ones)));
        let hidden = ours.mask.unwrap().into_data();
        let hidden: Vec<bool> = hidden.iter::<bool>().collect();
        let expected = match expected.mask {
            Some(mask) => mask.into_data().iter::<bool>().collect(),
            None => vec![false; batch * (past + 1)],
        };
        for (row, (hidden, expected)) in hidden.chunks(capacity).zip(expected.chunks(past + 1)).enumerate() {
            prop_assert_eq!(&hidden[..=past], expected, "row {}", row);
            prop_assert!(hidden[past + 1..].iter().all(|&hidden| hidden), "row {}", row);
        }
    }
}
