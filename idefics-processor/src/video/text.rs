//! The part of the prompt that represents a video.
//!
//! Source: `SmolVLMProcessor.replace_video_token`, and the English numerals of num2words.

use std::fmt::Write;

use crate::video::SampledVideo;

/// The placeholder of a whole video in unexpanded text. It need not be a token of the tokenizer.
pub(crate) const VIDEO_TOKEN: &str = "<video>";

/// The kind of a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    Image,
    Video,
}

/// Splits a text at its placeholders. Returns the text before each placeholder with the placeholder's kind, and the
/// text after the last placeholder. `image` and `video` are the placeholders; `video` is `None` in families without
/// videos.
pub(crate) fn split_media<'t>(text: &'t str, image: &str, video: Option<&str>) -> (Vec<(&'t str, Medium)>, &'t str) {
    let (mut parts, mut rest) = (Vec::new(), text);
    let mut next = (rest.find(image), video.and_then(|video| rest.find(video)));
    loop {
        let (at, length, medium) = match next {
            (None, None) => return (parts, rest),
            (Some(at), other) if other.is_none_or(|other| at < other) => (at, image.len(), Medium::Image),
            (_, Some(at)) => (at, video.map_or(0, str::len), Medium::Video),
            (Some(at), None) => (at, image.len(), Medium::Image),
        };
        parts.push((&rest[..at], medium));
        rest = &rest[at + length..];
        // The next placeholder of the other kind is already known. Only the kind that was just found is searched for
        // again.
        let behind = |found: Option<usize>| found.map(|found| found - at - length);
        next = match medium {
            Medium::Image => (rest.find(image), behind(next.1)),
            Medium::Video => (behind(next.0), video.and_then(|video| rest.find(video))),
        };
    }
}

/// Writes the text of a video. `frame` is the text that represents one frame.
pub(crate) fn write_video(text: &mut String, video: &SampledVideo, frame: &str) {
    const WRITES: &str = "writing to a string succeeds";
    let count = number_words(video.frames_indices.len());
    let duration = video.duration.or(video.timestamps().next_back()).unwrap_or(0.0);
    let length = length(duration as u64);
    writeln!(text, "You are provided the following series of {count} frames from a {length} [H:MM:SS] video.")
        .expect(WRITES);
    for second in video.timestamps() {
        let second = second as u64;
        write!(text, "\nFrame from {:02}:{:02}:{frame}", second / 60, second % 60).expect(WRITES);
    }
    text.push_str("\n\n");
}

/// Formats seconds as Python prints a `timedelta`: `0:00:09`, `1 day, 0:00:00`.
fn length(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let time = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => time,
        1 => format!("1 day, {time}"),
        days => format!("{days} days, {time}"),
    }
}

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// Returns a number in English words: `sixty-four`, `five hundred and twelve`, `one thousand and one`.
fn number_words(number: usize) -> String {
    match number {
        0..20 => SMALL[number].to_owned(),
        20..100 if number.is_multiple_of(10) => TENS[number / 10].to_owned(),
        20..100 => format!("{}-{}", TENS[number / 10], SMALL[number % 10]),
        100..1000 if number.is_multiple_of(100) => format!("{} hundred", SMALL[number / 100]),
        100..1000 => format!("{} hundred and {}", SMALL[number / 100], number_words(number % 100)),
        1000..1_000_000 => {
            let thousands = number_words(number / 1000);
            match number % 1000 {
                0 => format!("{thousands} thousand"),
                rest @ 1..100 => format!("{thousands} thousand and {}", number_words(rest)),
                rest => format!("{thousands} thousand, {}", number_words(rest)),
            }
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_num2words_does() {
        for (number, words) in [
            (0, "zero"),
            (9, "nine"),
            (10, "ten"),
            (13, "thirteen"),
            (20, "twenty"),
            (21, "twenty-one"),
            (64, "sixty-four"),
            (99, "ninety-nine"),
            (100, "one hundred"),
            (101, "one hundred and one"),
            (340, "three hundred and forty"),
            (512, "five hundred and twelve"),
            (999, "nine hundred and ninety-nine"),
            (1000, "one thousand"),
            (1001, "one thousand and one"),
            (1100, "one thousand, one hundred"),
            (12_345, "twelve thousand, three hundred and forty-five"),
        ] {
            assert_eq!(number_words(number), words);
        }
    }

    /// Compares the FNV-1a hash of all numbers below a thousand, one per line, with that of the output of num2words
    /// 0.5.14.
    #[test]
    fn all_numbers_equal_those_of_num2words() {
        let lines: String = (0..1000).map(|number| number_words(number) + "\n").collect();
        let hash = lines
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(hash, 0x450d_229e_eac0_736e);
    }

    #[test]
    fn lengths_are_written_as_python_does() {
        let seconds = [9, 61, 3723, 86_399, 86_400, 2 * 86_400 + 5];
        let words = ["0:00:09", "0:01:01", "1:02:03", "23:59:59", "1 day, 0:00:00", "2 days, 0:00:05"];
        assert_eq!(seconds.map(length), words);
    }

    #[test]
    fn text_equals_the_reference() {
        let mut video =
            SampledVideo { frames_indices: vec![0, 33, 66], fps: 10.0, is_fps_assumed: false, duration: Some(10.0) };
        let written = |video: &SampledVideo| {
            let mut text = String::new();
            write_video(&mut text, video, "FGIF");
            text
        };
        assert_eq!(
            written(&video),
            "You are provided the following series of three frames from a 0:00:10 [H:MM:SS] video.\n\nFrame from \
             00:00:FGIF\nFrame from 00:03:FGIF\nFrame from 00:06:FGIF\n\n"
        );
        video.duration = None;
        assert!(written(&video).contains("from a 0:00:06 [H:MM:SS]"));
        video.frames_indices = vec![36_610];
        assert!(written(&video).contains("\nFrame from 61:01:F"));
    }

    #[test]
    fn placeholders_are_found_in_order() {
        let (parts, rest) = split_media("a<image><video>b<video><image>c", "<image>", Some(VIDEO_TOKEN));
        let expected = [("a", Medium::Image), ("", Medium::Video), ("b", Medium::Video), ("", Medium::Image)];
        assert_eq!((parts.as_slice(), rest), (&expected[..], "c"));
        let (parts, rest) = split_media("a<video>b", "<image>", None);
        assert!(parts.is_empty() && rest == "a<video>b");
        let (parts, rest) = split_media("a<video>b<video>", "<image>", Some(VIDEO_TOKEN));
        assert_eq!((parts.len(), rest), (2, ""));
    }
}
