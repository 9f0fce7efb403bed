//! Secrets: the tokens that say who may do what.

use std::fmt;

use subtle::ConstantTimeEq;

/// A secret of one line. Neither `Debug` nor an error shows it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of that text: visible ASCII, so that it fits a header.
    ///
    /// # Errors
    /// The text is no token. The error says what would be.
    pub fn new(text: &str) -> Result<Token, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Token(text.to_owned()))
        } else {
            Err("at least one letter, and no spaces or letters beyond ASCII".to_owned())
        }
    }

    /// The value of `Authorization`.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a text is the token. Takes the same time for all texts of one length.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
