//! The time that `strftime_now` writes.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// A point in time, as the wall clock of some place shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    seconds: i64,
    micros: u32,
}

impl Now {
    /// The current time in UTC.
    pub fn utc() -> Self {
        Self::from(SystemTime::now())
    }

    /// The time so many seconds after 1970-01-01 00:00:00 on the clock.
    pub fn from_seconds(seconds: i64) -> Self {
        // The years 1 to 9999, as in Python.
        Self { seconds: seconds.clamp(-62_135_596_800, 253_402_300_799), micros: 0 }
    }

    pub(crate) fn seed(self) -> u64 {
        self.seconds as u64 ^ (u64::from(self.micros) << 40)
    }
}

impl From<SystemTime> for Now {
    /// In UTC.
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
    /// From 1.
    month: i64,
    /// From 1.
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From Monday, which is 0.
    weekday: i64,
}

impl Now {
    /// The date by the civil calendar. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
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

    /// Python's `datetime.strftime` in the C locale.
    pub(crate) fn strftime(self, format: &str) -> Result<String> {
        let date = self.date();
        let time = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let half = if hour < 12 { "AM" } else { "PM" };
        let month = MONTHS.get(date.month as usize - 1).copied().unwrap_or_default();
        let weekday = DAYS.get(date.weekday as usize).copied().unwrap_or_default();
        // Weeks of the year that begin on Sunday and on Monday.
        let sunday_week = (date.day_of_year + 6 - (date.weekday + 1) % 7) / 7;
        let monday_week = (date.day_of_year + 6 - date.weekday) / 7;
        let (iso_year, iso_week) = iso_week(&date);
        let mut text = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let Some(mut directive) = characters.next() else {
                text.push('%');
                break;
            };
            // Flags of the C library.
            let flag = Some(directive).filter(|flag| matches!(flag, '-' | '_' | '0' | '^' | '#'));
            if flag.is_some() {
                match characters.next() {
                    Some(next) => directive = next,
                    None => return Err(Error::value("strftime_now: the format ends within a directive")),
                }
            }
            let number = |value: i64, width: usize, fill: char| match (flag, fill) {
                (Some('-'), _) => value.to_string(),
                (Some('_'), _) => format!("{value:>width$}"),
                (Some('0'), _) | (_, '0') => format!("{value:0width$}"),
                _ => format!("{value:>width$}"),
            };
            let written = match directive {
                'Y' => date.year.to_string(),
                'C' => number(date.year / 100, 2, '0'),
                'y' => number(date.year % 100, 2, '0'),
                'm' => number(date.month, 2, '0'),
                'd' => number(date.day, 2, '0'),
                'e' => number(date.day, 2, ' '),
                'H' => number(hour, 2, '0'),
                'k' => number(hour, 2, ' '),
                'I' => number(hour12, 2, '0'),
                'l' => number(hour12, 2, ' '),
                'M' => number(minute, 2, '0'),
                'S' => number(second, 2, '0'),
                'f' => format!("{:06}", self.micros),
                'j' => number(date.day_of_year, 3, '0'),
                'p' => half.to_owned(),
                'P' => half.to_lowercase(),
                'B' => month.to_owned(),
                'b' | 'h' => month.get(..3).unwrap_or_default().to_owned(),
                'A' => weekday.to_owned(),
                'a' => weekday.get(..3).unwrap_or_default().to_owned(),
                'u' => (date.weekday + 1).to_string(),
                'w' => ((date.weekday + 1) % 7).to_string(),
                'U' => number(sunday_week, 2, '0'),
                'W' => number(monday_week, 2, '0'),
                'V' => number(iso_week, 2, '0'),
                'G' => iso_year.to_string(),
                'g' => number(iso_year % 100, 2, '0'),
                's' => self.seconds.to_string(),
                'c' => self.strftime("%a %b %e %H:%M:%S %Y")?,
                'x' | 'D' => self.strftime("%m/%d/%y")?,
                'X' | 'T' => self.strftime("%H:%M:%S")?,
                'F' => self.strftime("%Y-%m-%d")?,
                'R' => self.strftime("%H:%M")?,
                'r' => self.strftime("%I:%M:%S %p")?,
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                'z' | 'Z' => String::new(),
                '%' => "%".to_owned(),
                other => format!("%{}{other}", flag.map(String::from).unwrap_or_default()),
            };
            match flag {
                Some('^') => text += &written.to_uppercase(),
                _ => text += &written,
            }
        }
        Ok(text)
    }
}

/// The year and week by ISO 8601, where the first week holds the first Thursday.
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
    fn dates_are_those_of_python() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %% %-d %e %I %p %U %W %G-%V %u %w %c";
        let date = |seconds| Now::from_seconds(seconds).strftime(format).expect("every directive is known");
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
