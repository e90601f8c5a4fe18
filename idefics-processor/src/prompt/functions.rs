//! The functions and filters that the reference adds to its template engine.
//!
//! Source: `_cached_compile_jinja_template`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

use crate::prompt::sandbox::wrong;

/// Ends the rendering with a message of the template's own.
pub(crate) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as the reference writes it: without the escapes that make it safe in HTML.
pub(crate) fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let _: Option<bool> = options.get("ensure_ascii")?;
    let indent = indent.or(options.get("indent")?).filter(|indent| !indent.is_none());
    options.assert_all_used()?;
    if indent.as_ref().and_then(Value::as_usize).is_some_and(|width| width > 16) {
        return Err(wrong("JSON is indented by at most 16 spaces"));
    }
    let escaped = minijinja::filters::tojson(value, indent, no_options())?.to_string();
    let mut json = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(start) = rest.find('\\') {
        let (before, escape) = rest.split_at(start);
        json.push_str(before);
        let html = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        rest = match html.iter().find(|(code, _)| escape.starts_with(code)) {
            Some((code, character)) => {
                json.push(*character);
                &escape[code.len()..]
            }
            None => {
                let end = escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end);
                json.push_str(&escape[..end]);
                &escape[end..]
            }
        };
    }
    json.push_str(rest);
    Ok(Value::from(json))
}

fn no_options() -> Kwargs {
    std::iter::empty::<(String, Value)>().collect()
}

/// The time in UTC, by the directives that chat templates use: `%Y %m %d %H %M %S %y %b %B %a %A %j %%`.
pub(crate) fn strftime_now(format: &str) -> Result<Value, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, seconds).map(Value::from)
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
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
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let weekday = DAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('d') => format!("{:02}", day + 1),
            Some('H') => format!("{:02}", time / 3600),
            Some('M') => format!("{:02}", time / 60 % 60),
            Some('S') => format!("{:02}", time % 60),
            Some('j') => format!("{day_of_year:03}"),
            Some('B') => MONTHS[month].to_owned(),
            Some('b') => MONTHS[month][..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('%') => "%".to_owned(),
            other => return Err(wrong(&format!("strftime_now does not know %{}", other.unwrap_or(' ')))),
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %%";
        let date = |seconds| strftime(format, seconds).expect("every directive is known");
        assert_eq!(date(0), "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 %");
        assert_eq!(date(951_827_696), "2000-02-29 12:34:56 Tue Tuesday Feb February 060 00 %");
        assert_eq!(date(4_102_444_799), "2099-12-31 23:59:59 Thu Thursday Dec December 365 99 %");
        assert!(strftime("%Q", 0).is_err());
    }

    #[test]
    fn json_keeps_characters_and_real_escapes() {
        let json = |text: &str| {
            let value = Value::from(text);
            to_json(&value, None, no_options()).expect("strings are JSON").to_string()
        };
        assert_eq!(json("<a & 'b'>"), r#""<a & 'b'>""#);
        assert_eq!(json(r"\u003c"), r#""\\u003c""#);
    }
}
