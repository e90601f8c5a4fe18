//! Streaming decoder: `cargo bench -p idefics-processor --bench stream`.
//!
//! Throughput is in tokens. All tokens are on one line: the time per token must not grow with the number of tokens.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_processor::{Processor, StreamDecoder};

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    for name in ["mistral-tokenizer", "byte-level"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/checkpoints").join(name);
        let processor = Processor::from_folder(&folder).expect("the committed checkpoint loads");
        let tokenizer = processor.tokenizer();
        for (what, text) in
            [("words", "The cat on the mat sees 3 birds, and "), ("bytes", "ᚠᛇᚻ᛫ᛒᛦᚦ"), ("one-word", "pneumono")]
        {
            let line = tokenizer.encode(text, false).expect("the text can be encoded");
            for n_tokens in [64, 512, 4096] {
                let ids: Vec<u32> = line.iter().copied().cycle().take(n_tokens).collect();
                group.throughput(Throughput::Elements(n_tokens as u64));
                group.bench_with_input(BenchmarkId::new(format!("{name}/{what}"), n_tokens), &ids, |b, ids| {
                    b.iter(|| {
                        let mut decoder = StreamDecoder::new(tokenizer, true);
                        for &id in ids {
                            black_box(decoder.push(id).expect("the ids can be decoded"));
                        }
                        decoder.end().expect("the ids can be decoded")
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, stream);
criterion_main!(benches);
