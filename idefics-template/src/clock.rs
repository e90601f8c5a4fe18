//! The time that `strftime_now` formats.

use std::time::{SystemTime, UNIX_EPOCH};

/// A wall-clock time without a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    seconds: i64,
    micros: u32,
}

impl Now {
    /// Returns the current time in UTC.
    pub fn utc() -> Self {
        Self::from(SystemTime::now())
    }

    /// Returns the wall-clock time `seconds` seconds after 1970-01-01 00:00:00, clamped to the years 1 to 9999 as in
    /// Python.
    pub fn from_seconds(seconds: i64) -> Self {
        // From 0001-01-01 00:00:00 to 9999-12-31 23:59:59.
        Self { seconds: seconds.clamp(-62_135_596_800, 253_402_300_799), micros: 0 }
    }

    pub(crate) fn seed(self) -> u64 {
        self.seconds as u64 ^ (u64::from(self.micros) << 40)
    }
}

impl From<SystemTime> for Now {
    /// Converts a system time to the time in UTC.
    fn from(time: SystemTime) -> Self {
        let (seconds, micros) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_micros()),
            Err(before) => (-i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX), 0),
        };
        Self { micros, ..Self::from_seconds(seconds) }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

struct Date {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    /// 1 to 366.
    day_of_year: i64,
    /// 0 (Monday) to 6 (Sunday).
    weekday: i64,
}

impl Now {
    /// Computes the date in the proleptic Gregorian calendar. Source: Howard Hinnant, "chrono-Compatible Low-Level Date
    /// Algorithms".
    fn date(self) -> Date {
        let days = self.seconds.div_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * from_march + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = match month {
            1 | 2 => from_march - 305,
            _ => from_march + 60 + i64::from(is_leap),
        };
        let day = from_march - (153 * shifted_month + 2) / 5 + 1;
        Date { year, month, day, day_of_year, weekday: (days + 3).rem_euclid(7) }
    }

    /// Formats the time as Python's `datetime.strftime` does in the C locale with the GNU C library.
    pub(crate) fn strftime(self, format: &str) -> String {
        // C strings end at the first null character.
        let format = format.split('\0').next().unwrap_or_default();
        // Python itself expands `%f` (microseconds), `%z` and `%Z` (time zone). There is no time zone, so both are
        // empty.
        let mut plain = String::with_capacity(format.len());
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                plain.push(character);
                continue;
            }
            match characters.next() {
                Some('f') => plain += &format!("{:06}", self.micros),
                Some('z' | 'Z') => {}
                directive => {
                    plain.push('%');
                    plain.extend(directive);
                }
            }
        }
        // CPython doubles the output buffer until the text fits, up to 256 times the length of the format. A text
        // that does not fit gives an empty string.
        let max_capacity = 256 * plain.chars().count();
        let mut capacity = 1024;
        while capacity < max_capacity {
            capacity *= 2;
        }
        self.directives(&plain, capacity).filter(|text| text.chars().count() < capacity).unwrap_or_default()
    }

    /// Formats the time as `strftime` of the C library does. Returns `None` if a field is at least `capacity`
    /// characters wide.
    fn directives(self, format: &str, capacity: usize) -> Option<String> {
        let mut text = String::new();
        let mut rest = format;
        while let Some(start) = rest.find('%') {
            text += &rest[..start];
            let (field, after) = Field::parse(&rest[start..]);
            if field.width >= capacity {
                return None;
            }
            let written = match field.allows_modifier() {
                true => self.directive(&field),
                false => None,
            };
            match written {
                Some(written) => field.pad(&written, &mut text),
                // Unknown directives are copied.
                None => field.pad(&field.apply_case(field.source.to_owned()), &mut text),
            }
            rest = after;
        }
        text += rest;
        Some(text)
    }

    fn directive(self, field: &Field) -> Option<String> {
        let date = self.date();
        let time = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let month = MONTHS.get(date.month as usize - 1).copied().unwrap_or_default();
        let weekday = DAYS.get(date.weekday as usize).copied().unwrap_or_default();
        // Week numbers in the year, for weeks that start on Sunday and for weeks that start on Monday.
        let sunday_week = (date.day_of_year + 6 - (date.weekday + 1) % 7) / 7;
        let monday_week = (date.day_of_year + 6 - date.weekday) / 7;
        let (iso_year, iso_week) = iso_week(&date);
        let name = |name: &str| if field.upper || field.other_case { name.to_uppercase() } else { name.to_owned() };
        let combined = |format: &str| self.directives(format, usize::MAX).map(|text| field.apply_case(text));
        Some(match field.directive? {
            'Y' => field.number(date.year, 1),
            'C' => field.number(date.year / 100, 2),
            'y' => field.number(date.year % 100, 2),
            'm' => field.number(date.month, 2),
            'd' => field.number(date.day, 2),
            'e' => field.spaced(date.day),
            'H' => field.number(hour, 2),
            'k' => field.spaced(hour),
            'I' => field.number(hour12, 2),
            'l' => field.spaced(hour12),
            'M' => field.number(minute, 2),
            'S' => field.number(second, 2),
            'j' => field.number(date.day_of_year, 3),
            'p' if field.other_case => if hour < 12 { "am" } else { "pm" }.to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if hour < 12 { "am" } else { "pm" }.to_owned(),
            'B' => name(month),
            'b' | 'h' => name(month.get(..3).unwrap_or_default()),
            'A' => name(weekday),
            'a' => name(weekday.get(..3).unwrap_or_default()),
            'u' => field.number(date.weekday + 1, 1),
            'w' => field.number((date.weekday + 1) % 7, 1),
            'U' => field.number(sunday_week, 2),
            'W' => field.number(monday_week, 2),
            'V' => field.number(iso_week, 2),
            'G' => field.number(iso_year, 1),
            'g' => field.number(iso_year % 100, 2),
            's' => self.seconds.to_string(),
            'c' => combined("%a %b %e %H:%M:%S %Y")?,
            'x' | 'D' => combined("%m/%d/%y")?,
            'X' | 'T' => combined("%H:%M:%S")?,
            'F' => combined("%Y-%m-%d")?,
            'R' => combined("%H:%M")?,
            'r' => combined("%I:%M:%S %p")?,
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            'Z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// One directive of a format: `%`, flags, width, modifier and letter.
struct Field<'a> {
    source: &'a str,
    /// Padding flag: `-` (none), `_` (spaces) or `0` (zeros).
    fill: Option<char>,
    /// Flag `^`: upper case.
    upper: bool,
    /// Flag `#`: opposite case.
    other_case: bool,
    /// Minimum width in characters.
    width: usize,
    /// Modifier `E` (alternative era) or `O` (alternative digits).
    modifier: Option<char>,
    /// The letter of the directive, or `None` at the end of the format.
    directive: Option<char>,
}

impl<'a> Field<'a> {
    /// Parses the field at the start of `text`, which starts with `%`. Also returns the text after the field.
    fn parse(text: &'a str) -> (Self, &'a str) {
        let mut field = Self {
            source: text,
            fill: None,
            upper: false,
            other_case: false,
            width: 0,
            modifier: None,
            directive: None,
        };
        let mut rest = text.strip_prefix('%').unwrap_or(text);
        while let Some(flag) = rest.chars().next().filter(|flag| "_-0^#".contains(*flag)) {
            match flag {
                '^' => field.upper = true,
                '#' => field.other_case = true,
                fill => field.fill = Some(fill),
            }
            rest = &rest[1..];
        }
        while let Some(digit) = rest.bytes().next().filter(u8::is_ascii_digit) {
            field.width = field.width.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
            rest = &rest[1..];
        }
        if let Some(modifier) = rest.chars().next().filter(|modifier| matches!(modifier, 'E' | 'O')) {
            field.modifier = Some(modifier);
            rest = &rest[1..];
        }
        field.directive = rest.chars().next();
        let rest = &rest[field.directive.map_or(0, char::len_utf8)..];
        field.source = &text[..text.len() - rest.len()];
        match field.directive {
            // `%z` writes nothing, not even padding.
            Some('z') => (Self { source: "", width: 0, ..field }, rest),
            _ => (field, rest),
        }
    }

    /// Whether the directive allows its modifier.
    fn allows_modifier(&self) -> bool {
        let directive = self.directive.unwrap_or_default();
        match self.modifier {
            Some('E') => !"aAbBdDeFgGhHIjklmMSUVWw".contains(directive),
            Some(_) => !"aAcDFxXY".contains(directive),
            None => true,
        }
    }

    fn apply_case(&self, text: String) -> String {
        let upper = self.upper || (self.other_case && matches!(self.directive, Some('b' | 'h')));
        if upper { text.to_uppercase() } else { text }
    }

    /// Formats a number, padded to at least `digits` digits.
    fn number(&self, value: i64, digits: usize) -> String {
        let width = digits.max(self.width);
        match self.fill {
            Some('-') => value.to_string(),
            Some('_') => format!("{value:>width$}"),
            _ => format!("{value:0width$}"),
        }
    }

    /// Formats a number, padded with spaces to at least two characters.
    fn spaced(&self, value: i64) -> String {
        match self.fill {
            None => format!("{value:>width$}", width = self.width.max(2)),
            Some(_) => self.number(value, 2),
        }
    }

    /// Writes text, padded to the width.
    fn pad(&self, text: &str, out: &mut String) {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = if self.fill == Some('0') { '0' } else { ' ' };
        out.extend(std::iter::repeat_n(fill, missing));
        *out += text;
    }
}

/// Returns the ISO 8601 year and week. Week 1 contains the first Thursday of the year.
fn iso_week(date: &Date) -> (i64, i64) {
    let weeks_in = |year: i64| {
        let weekday_of_31_december = |year: i64| (year + year / 4 - year / 100 + year / 400) % 7;
        52 + i64::from(weekday_of_31_december(year) == 4 || weekday_of_31_december(year - 1) == 3)
    };
    let week = (date.day_of_year - date.weekday + 9) / 7;
    match week {
        0 => (date.year - 1, weeks_in(date.year - 1)),
        week if week > weeks_in(date.year) => (date.year + 1, 1),
        week => (date.year, week),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_matches_python() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %% %-d %e %I %p %U %W %G-%V %u %w %c";
        let date = |seconds| Now::from_seconds(seconds).strftime(format);
        for (seconds, expected) in [
            (
                0,
                "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 % 1  1 12 AM 00 00 1970-01 4 4 Thu Jan  1 00:00:00 1970",
            ),
            (
                951_827_696,
                "2000-02-29 12:34:56 Tue Tuesday Feb February 060 00 % 29 29 12 PM 09 09 2000-09 2 2 Tue Feb 29 12:34:56 2000",
            ),
            (
                4_102_444_799,
                "2099-12-31 23:59:59 Thu Thursday Dec December 365 99 % 31 31 11 PM 52 52 2099-53 4 4 Thu Dec 31 23:59:59 2099",
            ),
            (
                1_609_459_200,
                "2021-01-01 00:00:00 Fri Friday Jan January 001 21 % 1  1 12 AM 00 00 2020-53 5 5 Fri Jan  1 00:00:00 2021",
            ),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
