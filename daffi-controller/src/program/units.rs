//! Sizes and times as people write them.

use std::time::Duration;

/// Parses bytes: `65536`, `64KiB`, `8MiB`, `1GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(format!("{unit:?} is no unit of bytes: write KiB, MiB or GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "that is more bytes than there are".to_owned())
}

/// Parses a time: `500ms`, `5s`, `2m`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned()),
        _ => Err(format!("{unit:?} is no unit of time: write ms, s or m")),
    }
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.parse().map_err(|_| "a whole number is expected".to_owned())?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(bytes("65536"), Ok(65_536));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for wrong in
            ["", "MiB", "-1", "1.5MiB", "1 parsec", "99999999999999999999", "18446744073709551615KiB"]
        {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "5", "s", "5h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
