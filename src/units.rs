//! Times and sizes with their units, as options and queries have them.

use std::time::Duration;

/// `500ms`, `15s`, `2m`, `1h`; not zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let ms = scaled(text, &units).ok_or("a time, such as 500ms, 15s or 2m")?;
    // A day is more than anything here needs, and keeps sums of times in range.
    let is_right = (1..=86_400_000).contains(&ms);
    is_right.then(|| Duration::from_millis(ms)).ok_or_else(|| "a time from 1ms to 24h".to_owned())
}

/// `4096`, `64K`, `4M`, `1G`; not zero.
#[cfg(feature = "cli")]
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let units = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)];
    let bytes = scaled(&text.to_ascii_uppercase(), &units).ok_or("a size, such as 65536, 64K or 4M")?;
    let is_right = (1..=1 << 30).contains(&bytes);
    is_right.then_some(bytes as usize).ok_or_else(|| "a size from 1 to 1G".to_owned())
}

/// A number times its unit. More than fits is the most that does.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let (_, factor) = units.iter().find(|(unit, _)| *unit == &text[digits.len()..])?;
    Some(digits.parse::<u64>().ok()?.saturating_mul(*factor))
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    #[test]
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
