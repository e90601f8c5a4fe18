//! Stop strings, compared with `StopStringCriteria`.

use idefics_generate::stop_strings::{StopMatch, StopStrings};
use proptest::prelude::*;
use serde::Deserialize;

use crate::fixtures::read;

#[derive(Deserialize)]
struct Fixture {
    tokens: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    stop_strings: Vec<String>,
    input_ids: Vec<Vec<usize>>,
    hits: Vec<bool>,
}

#[test]
fn stop_strings_match_reference() {
    let fixture: Fixture = read("stop_strings");
    for case in fixture.cases {
        let stop_strings = StopStrings::new(case.stop_strings.clone()).unwrap();
        for (ids, hit) in case.input_ids.iter().zip(case.hits) {
            let pieces = ids.iter().map(|&id| fixture.tokens[id].as_bytes());
            assert_eq!(stop_strings.find(pieces).is_some(), hit, "{:?} in {ids:?}", case.stop_strings);
        }
    }
}

#[test]
fn match_gives_bytes_to_cut() {
    let stop_strings = StopStrings::new(["User:", "r: a"]).unwrap();
    let pieces = ["ok", " ", "Us", "er: a!"].map(str::as_bytes);
    assert_eq!(stop_strings.find(pieces), Some(StopMatch { index: 0, from_end: 8, after: 3 }));
    assert_eq!(
        stop_strings.find(["User:", "x"].map(str::as_bytes)),
        None,
        "the stop string ended before the last token"
    );
    assert_eq!(stop_strings.find(["User", ":"].map(str::as_bytes)).map(|found| found.after), Some(0));
    assert_eq!(stop_strings.find::<&[u8]>([]), None);
    assert!(StopStrings::new([""]).is_err());
}

proptest! {
    #[test]
    fn finds_first_token_that_completes_stop_string(
        pieces in proptest::collection::vec("[ab\u{e9}]{0,3}", 1..12),
        stop in "[ab\u{e9}]{1,4}",
    ) {
        let stop_strings = StopStrings::new([stop.clone()]).unwrap();
        let mut text = String::new();
        for end in 1..=pieces.len() {
            let n_old = text.len();
            text.push_str(&pieces[end - 1]);
            let expected = (0..text.len()).any(|at| text.is_char_boundary(at) && text[at..].starts_with(&stop)
                && at + stop.len() > n_old);
            let found = stop_strings.find(pieces[..end].iter().map(|piece| piece.as_bytes()));
            prop_assert_eq!(found.is_some(), expected);
        }
    }
}
