//! Secrets: the tokens that say who may do what.

use std::fmt;

use subtle::ConstantTimeEq;

/// A secret of one line. It shows itself to nobody: neither `Debug` nor an error has it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of that text: visible ASCII, so that it fits a header.
    ///
    /// # Errors
    /// What a token must be, where it is something else.
    pub fn new(text: &str) -> Result<Token, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Token(text.to_owned()))
        } else {
            Err("at least one letter, and no spaces or letters beyond ASCII".to_owned())
        }
    }

    /// What the header that shows it says.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether somebody who says this has the token. Takes as long for any text of the same length.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
