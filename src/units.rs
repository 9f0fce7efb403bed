//! Times and sizes with their units, as options and queries have them.

use std::time::Duration;

/// `500ms`, `15s`, `2m`, `1h`; not zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time, such as 500ms, 15s or 2m".to_owned();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit_ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    // A day is more than anything here needs, and keeps sums of times in range.
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=86_400_000).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| "a time from 1ms to 24h".to_owned())
}

/// `4096`, `64K`, `4M`, `1G`; not zero.
#[cfg(feature = "cli")]
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let wrong = || "a size, such as 65536, 64K or 4M".to_owned();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: usize = digits.parse().map_err(|_| wrong())?;
    let unit: usize = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(unit).filter(|bytes| (1..=1 << 30).contains(bytes));
    bytes.ok_or_else(|| "a size from 1 to 1G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "cli")]
    fn sizes_and_times_have_units() {
        assert_eq!(size("4096"), Ok(4_096));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert!(size("2G").is_err());
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        assert!(duration("25h").is_err());
    }
}
