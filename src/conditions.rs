//! The conditions of a request (RFC 9110, 13): what a client takes to be there, compared with what is.
//!
//! `http` reads them, `hub` asks them under the lock of the write. The one rule: a write whose condition does not hold,
//! or cannot be read, changes nothing.

/// `If-Match` and `If-None-Match`. Several lines of one name are one list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
}

/// A condition that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    IfMatch,
    IfNoneMatch,
}

impl Failed {
    /// What a client should know of it.
    pub fn text(self) -> &'static str {
        match self {
            Failed::IfMatch => {
                "what is there is not what If-Match names; GET it anew, and send its ETag, quotes included"
            }
            Failed::IfNoneMatch => "what is there is what If-None-Match rules out; nothing was changed",
        }
    }
}

impl Conditions {
    /// Whether there is something to be asked.
    pub fn are_any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }

    /// Judges a write. `tag` is the `ETag` of what is there; `None` where nothing is.
    pub fn judge_write(&self, tag: Option<&str>) -> Result<(), Failed> {
        self.judge_if_match(tag)?;
        let is_unlike =
            |list: &String| lists(list, tag, Comparison::Weak).is_some_and(|is_listed| !is_listed);
        if self.if_none_match.as_ref().is_none_or(is_unlike) { Ok(()) } else { Err(Failed::IfNoneMatch) }
    }

    /// Judges the reading of what is there. `IfNoneMatch`: the client has it already.
    pub fn judge_read(&self, tag: &str) -> Result<(), Failed> {
        self.judge_if_match(Some(tag))?;
        let is_known = |list: &String| lists(list, Some(tag), Comparison::Weak) == Some(true);
        if self.if_none_match.as_ref().is_some_and(is_known) { Err(Failed::IfNoneMatch) } else { Ok(()) }
    }

    fn judge_if_match(&self, tag: Option<&str>) -> Result<(), Failed> {
        let is_listed = |list: &String| lists(list, tag, Comparison::Strong) == Some(true);
        if self.if_match.as_ref().is_none_or(is_listed) { Ok(()) } else { Err(Failed::IfMatch) }
    }
}

/// Whether weak tags count (RFC 9110, 8.8.3.2).
#[derive(Clone, Copy, PartialEq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags has this one; `*` is whatever there is. `None`: it is no such list.
fn lists(list: &str, tag: Option<&str>, comparison: Comparison) -> Option<bool> {
    const SPACE: [char; 2] = [' ', '\t'];
    let mut is_listed = false;
    let mut rest = list;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(is_listed);
        }
        rest = if let Some(rest) = rest.strip_prefix('*') {
            is_listed |= tag.is_some();
            rest
        } else {
            let strong = rest.strip_prefix("W/").unwrap_or(rest);
            let is_weak = strong.len() < rest.len();
            // A comma may stand in a tag, and a quote cannot.
            let end = 2 + strong.strip_prefix('"')?.find('"')?;
            let counts = comparison == Comparison::Weak || !is_weak;
            is_listed |= counts && tag == Some(&strong[..end]);
            &strong[end..]
        };
        rest = rest.trim_start_matches(SPACE);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(if_match: &str, if_none_match: &str) -> Conditions {
        let list = |text: &str| (text != "-").then(|| text.to_owned());
        Conditions { if_match: list(if_match), if_none_match: list(if_none_match) }
    }

    /// What is there has the tag `"5-0"`, or else there is nothing.
    fn may_write(conditions: &Conditions) -> (bool, bool) {
        let may = |tag| conditions.judge_write(tag).is_ok();
        (may(Some("\"5-0\"")), may(None))
    }

    #[test]
    fn if_match_holds_where_a_strong_tag_of_the_list_is_there() {
        let table = [
            ("-", (true, true)),
            ("*", (true, false)),
            (" * ", (true, false)),
            ("\"5-0\"", (true, false)),
            ("\"4-0\", \"5-0\"", (true, false)),
            ("\"5-0\",\"4-0\"", (true, false)),
            (",, \"a,b\" ,\t\"5-0\" ,", (true, false)),
            ("\"4-0\"", (false, false)),
            ("W/\"5-0\"", (false, false)),
            ("\"a,\"5-0\",b\"", (false, false)),
            ("\"a, 5-0, b\"", (false, false)),
            ("5-0", (false, false)),
            ("\"5-0", (false, false)),
            ("5-0\"", (false, false)),
            ("'5-0'", (false, false)),
            ("w/\"5-0\"", (false, false)),
            ("\"5-0\" \"4-0\"", (false, false)),
            ("\"5-0\"x", (false, false)),
            ("\"*\"", (false, false)),
            ("**", (false, false)),
            ("", (false, false)),
        ];
        for (list, expected) in table {
            assert_eq!(may_write(&conditions(list, "-")), expected, "{list}");
        }
    }

    #[test]
    fn if_none_match_holds_where_no_tag_of_the_list_is_there() {
        let table = [
            ("*", (false, true)),
            ("\"5-0\"", (false, true)),
            ("W/\"5-0\"", (false, true)),
            ("\"4-0\", W/\"5-0\"", (false, true)),
            ("\"4-0\", *", (false, true)),
            ("\"4-0\"", (true, true)),
            ("\"a, 5-0, b\"", (true, true)),
            ("\"*\"", (true, true)),
            ("", (true, true)),
            // Nobody knows what was meant.
            ("5-0", (false, false)),
            ("\"5-0", (false, false)),
            ("4-0", (false, false)),
        ];
        for (list, expected) in table {
            assert_eq!(may_write(&conditions("-", list)), expected, "{list}");
        }
    }

    #[test]
    fn both_conditions_must_hold_and_if_match_is_asked_first() {
        let tag = Some("\"5-0\"");
        let judge = |if_match, if_none_match| conditions(if_match, if_none_match).judge_write(tag);
        assert_eq!(judge("\"5-0\"", "\"4-0\""), Ok(()));
        assert_eq!(judge("\"5-0\"", "*"), Err(Failed::IfNoneMatch));
        assert_eq!(judge("\"4-0\"", "*"), Err(Failed::IfMatch));
        let read = |if_match, if_none_match| conditions(if_match, if_none_match).judge_read("\"5-0\"");
        assert_eq!(read("-", "W/\"5-0\""), Err(Failed::IfNoneMatch));
        assert_eq!(read("\"4-0\"", "\"5-0\""), Err(Failed::IfMatch));
        assert_eq!(read("-", "5-0"), Ok(()));
    }
}
