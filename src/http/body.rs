//! Bodies: read whole, within a size and a time, or refused.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use tiny_http::{Header, Request};

use crate::clock::is_http_date;
use crate::http::allocator::for_stranger;
use crate::http::answer::Answer;
use crate::http::call::{announces_trailer, asks_for_upgrade, expects, is_chunked};
use crate::http::turn::Turn;

/// What a body may take: a start, and more for each piece.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PIECE: usize = 64 << 10;
const BODY_PIECE_PATIENCE: Duration = Duration::from_secs(1);

/// What is read of a body without a length that turns out too large.
const DRAINED_BODY: u64 = 16 << 20;

/// Whether some of the body has yet to come: tiny_http reads up to 1 KiB by itself (request.rs:184).
pub(super) fn has_body_to_come(request: &Request) -> bool {
    let headers = request.headers();
    let waits = expects(headers) || asks_for_upgrade(headers);
    is_chunked(headers) || request.body_length().is_some_and(|length| length > 1_024 || length > 0 && waits)
}

/// Reads a body of at most `max` bytes. Blocks until it has come, or its time is over.
pub(super) fn read_body(request: &mut Request, turn: &Turn, max: usize) -> Result<Vec<u8>, Answer> {
    let declared = request.body_length();
    if declared.unwrap_or(0) == 0 && !is_chunked(request.headers()) {
        // With an upgrade, tiny_http's reader would go on to whatever comes (request.rs:180).
        return Ok(Vec::new());
    }
    check_length(declared, request.headers(), turn, max)?;
    let mut slow = turn.slow_place();
    if has_body_to_come(request) {
        if !slow.take() {
            return Err(Answer::refusal(503, "too many bodies are on their way; try again"));
        }
        let pieces = declared.unwrap_or(max).div_ceil(BODY_PIECE) as u32;
        // The keeper closes the connection then, and reading ends.
        turn.set_body_deadline(Some(Instant::now() + BODY_PATIENCE + BODY_PIECE_PATIENCE * pieces));
    }
    let mut body = Vec::new();
    let is_whole = match declared {
        Some(length) => read_up_to(request.as_reader(), length, &mut body).map(|()| body.len() == length),
        None => read_chunked(request, turn, max, &mut body),
    };
    turn.set_body_deadline(None);
    match is_whole {
        Ok(_) if body.len() > max => Err(too_large(max)),
        Ok(true) => Ok(body),
        // Half a body must not become half a patch.
        Ok(false) => Err(Answer::refusal(400, "the body ended early")),
        Err(error) if declared.is_some() => {
            Err(Answer::refusal(400, format!("the body cannot be read: {error}")))
        }
        Err(_) => Err(Answer::refusal(
            400,
            "the body's chunks cannot be read: they are malformed, or a trailer follows that no Trailer header \
             announces; send the body with a Content-Length",
        )),
    }
}

/// Refuses what is known to be too much, and what cannot be asked for.
fn check_length(declared: Option<usize>, headers: &[Header], turn: &Turn, max: usize) -> Result<(), Answer> {
    let refusal = if declared.is_some_and(|length| length > max) {
        too_large(max)
    } else if expects(headers) && !is_http_date() {
        // tiny_http dates its 100, and panics where it cannot (request.rs:364); dropping the request then ends the process.
        Answer::refusal(417, "this machine's clock is wrong; send the body without Expect")
    } else {
        return Ok(());
    };
    // With `Expect: 100-continue` the body does not come before we ask for it; without, it is on its way.
    if expects(headers) {
        turn.shut_read();
    }
    Err(refusal)
}

fn too_large(max: usize) -> Answer {
    Answer::refusal(413, format!("the body is larger than {max} bytes (--max-body)"))
}

/// Reads a body that comes in chunks, up to one byte more than `max`, and says whether all of it has come.
fn read_chunked(request: &mut Request, turn: &Turn, max: usize, body: &mut Vec<u8>) -> io::Result<bool> {
    if asks_for_upgrade(request.headers()) {
        return read_chunks(&mut Chunks::new(request.as_reader()), max, body).map(|()| true);
    }
    match read_chunks(request.as_reader(), max, body) {
        // The decoder knows no trailer section, and fails where one begins (decoder.rs:138).
        Err(error)
            if error.kind() == ErrorKind::InvalidInput
                && announces_trailer(request.headers())
                && !turn.has_ended() =>
        {
            Ok(true)
        }
        // To it a chunk that ends early looks like the last one (decoder.rs:132): a peer that has closed its side may
        // have meant to send more.
        read => read.map(|()| !turn.has_ended()),
    }
}

/// What is too much of it is read and thrown away: closing before it has come would take our answer along.
fn read_chunks(chunks: &mut dyn Read, max: usize, body: &mut Vec<u8>) -> io::Result<()> {
    let read = read_up_to(chunks, max + 1, body);
    if read.is_ok() && body.len() > max {
        for_stranger(|| io::copy(&mut chunks.take(DRAINED_BODY), &mut io::sink()).ok());
    }
    read
}

fn read_up_to(reader: &mut dyn Read, max: usize, body: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = vec![0; BODY_PIECE.min(max)];
    while body.len() < max {
        let wanted = piece.len().min(max - body.len());
        // A chunk's size line that never ends is read into memory on this thread.
        match for_stranger(|| reader.read(&mut piece[..wanted])) {
            Ok(0) => break,
            Ok(count) => body.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A chunked body that is read from the bytes as they came (RFC 9112, 7.1): tiny_http does not decode it when the request
/// asks for an upgrade (request.rs:188), which is ignored here.
struct Chunks<'a> {
    bytes: &'a mut dyn Read,
    /// What is left of the chunk; `None` behind the last.
    left: Option<u64>,
}

impl Chunks<'_> {
    /// What a size line, or the trailer section, may have.
    const MAX_LINES: usize = 8 << 10;

    fn new(bytes: &mut dyn Read) -> Chunks<'_> {
        Chunks { bytes, left: Some(0) }
    }

    /// Reads a line without its end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.bytes.read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > Self::MAX_LINES {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }

    /// Reads the line that says how long the next chunk is; behind the last one, the trailer section, too.
    fn begin_chunk(&mut self) -> io::Result<u64> {
        let line = self.line()?;
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
        let size =
            std::str::from_utf8(size).ok().filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size = size.and_then(|size| u64::from_str_radix(size, 16).ok()).ok_or(ErrorKind::InvalidData)?;
        if size == 0 {
            self.skip_trailers()?;
        }
        Ok(size)
    }

    fn skip_trailers(&mut self) -> io::Result<()> {
        let mut left = Self::MAX_LINES;
        loop {
            match self.line()?.len() {
                0 => return Ok(()),
                length => left = left.checked_sub(length).ok_or(ErrorKind::InvalidData)?,
            }
        }
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == Some(0) {
            self.left = Some(self.begin_chunk()?).filter(|size| *size > 0);
        }
        let Some(left) = self.left else { return Ok(0) };
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.bytes.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let left = left - count as u64;
        if left == 0 && !self.line()?.is_empty() {
            return Err(ErrorKind::InvalidData.into());
        }
        self.left = Some(left);
        Ok(count)
    }
}
