//! RFC 3339 timestamps in UTC, the form that codex writes, as milliseconds since 1970.

/// Milliseconds since 1970 of a timestamp like `2026-11-21T12:07:52.075Z`; the fraction and the `Z` may be missing.
pub(crate) fn parse(timestamp: &str) -> Option<u64> {
    const SEPARATORS: [(usize, u8); 5] = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let text = timestamp.strip_suffix('Z').unwrap_or(timestamp);
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let bytes = text.as_bytes();
    if bytes.len() != 19 || SEPARATORS.iter().any(|(at, byte)| bytes[*at] != *byte) {
        return None;
    }
    let part = |start: usize, end: usize| number(text.get(start..end)?);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    // A leap second is 60.
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
        || !is_decimal(fraction)
    {
        return None;
    }
    let digits = fraction.bytes().map(|byte| u64::from(byte - b'0'));
    let digits = digits.chain(std::iter::repeat(0)).take(3);
    let millis = digits.fold(0, |millis, digit| millis * 10 + digit);
    // Days of the civil calendar; years begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

/// A number of decimal digits alone.
fn number(digits: &str) -> Option<u64> {
    is_decimal(digits).then(|| digits.parse().ok())?
}

fn is_decimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The timestamp of this many milliseconds since 1970, as ASCII; the year modulo 10000.
pub(crate) fn format(millis: u64) -> [u8; 24] {
    let seconds = millis / 1000;
    let (year, month, day) = date_of_day(i64::try_from(seconds / 86_400).unwrap_or_default());
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (place, mut number) in [
        (0..4, year.unsigned_abs()),
        (5..7, month.into()),
        (8..10, day.into()),
        (11..13, seconds / 3600 % 24),
        (14..16, seconds / 60 % 60),
        (17..19, seconds % 60),
        (20..23, millis % 1000),
    ] {
        for digit in text[place].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
    }
    text
}

/// Year, month and day of a day counted from 1970-01-01, by Howard Hinnant's `civil_from_days`.
pub(crate) fn date_of_day(day: i64) -> (i64, u32, u32) {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + i64::from(month <= 2);
    // Both are small by construction: 1 to 12, 1 to 31.
    (year, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_dates() {
        for (day, expected) in [
            (0, (1970, 1, 1)),
            (-1, (1969, 12, 31)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_512, (2026, 2, 28)),
            (20_513, (2026, 3, 1)),
            (20_818, (2026, 12, 31)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date_of_day(day), expected, "day {day}");
        }
    }

    #[test]
    fn formats_what_it_parses() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2026-11-21T12:07:52.075Z",
        ] {
            assert_eq!(format(parse(text).unwrap()), text.as_bytes());
        }
        assert_eq!(
            parse("2026-11-21T12:07:52"),
            parse("2026-11-21T12:07:52.000Z")
        );
        assert_eq!(
            parse("2026-11-21T12:07:52.5"),
            parse("2026-11-21T12:07:52.500Z")
        );
        assert_eq!(
            parse("2026-11-21T12:07:52.0751Z"),
            parse("2026-11-21T12:07:52.075Z")
        );
        for text in [
            "",
            "yesterday",
            "1969-12-31T23:59:59Z",
            "2026-13-21T12:07:52Z",
            "2026-00-21T12:07:52Z",
            "2026-11-32T12:07:52Z",
            "2026-11-21T24:07:52Z",
            "2026-11-21T12:60:52Z",
            "2026-11-21T12:07:61Z",
            "2026-+1-+1T+1:+1:+1Z",
            "2026-11-21T12:07:52.+99Z",
            "2026-11-21T12:07:52.123+02:00",
            "2026-11-21T12:07:52.é",
            "2026-11-21T12:07:52.éé",
            "2026-11-21T12:07:5é",
            "é026-11-21T12:07:52",
            "2026-11-21T12:07:é2.123Z",
            "2026-11-21 12:07:52Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
