//! Just enough HTTP/1.1 to read it strictly: heads, and bodies by their framing.

use std::fmt;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A header line; the name's case as sent.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Header {
    pub(crate) fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.to_owned() }
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value)
    }
}

/// The first value of a header, by any case.
pub(crate) fn find<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
}

/// The lines of a head after the first.
pub(crate) fn parse_headers(head: &str) -> Vec<Header> {
    let lines = head.split("\r\n").skip(1).filter(|line| !line.is_empty());
    lines
        .map(|line| match line.split_once(':') {
            Some((name, value)) => Header::new(name, value.trim()),
            None => Header::new(line, ""),
        })
        .collect()
}

/// An event of a stream.
pub(crate) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// The JSON of each `data:` line of a stream; lines that are not JSON (such as `[DONE]`) are left out.
pub(crate) fn json_events(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(body);
    text.lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .filter_map(|data| serde_json::from_str(data.trim()).ok())
        .collect()
}

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none (left).
    Empty,
    /// So many bytes are left.
    Length(u64),
    /// `Transfer-Encoding: chunked`; so many bytes are left of the current chunk.
    Chunked(u64),
    /// Until the connection closes.
    Close,
}

/// What came next of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Bytes, as they arrived.
    Bytes(Vec<u8>),
    /// Its proper end.
    End(Vec<Header>),
    /// The connection ended before the body did.
    Cut,
}

/// A connection's reading side, with what was read and not yet used.
pub(crate) struct Reader<R> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, buffer: Vec::new() }
    }

    /// Reads more; `false` at the end, however it came.
    async fn fill(&mut self) -> bool {
        matches!(self.from.read_buf(&mut self.buffer).await, Ok(read) if read > 0)
    }

    /// Reads until the peer ends; `true` when it ended cleanly.
    pub(crate) async fn drain(&mut self) -> bool {
        loop {
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// What was read and not yet used.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// So many bytes; `None` when the connection ends first.
    pub(crate) async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(count);
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    /// Everything up to and with `mark`; `None` when the connection ends first.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..].windows(mark.len()).position(|window| window == mark);
            if let Some(at) = found {
                let rest = self.buffer.split_off(searched + at + mark.len());
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            searched = self.buffer.len().saturating_sub(mark.len() - 1);
            if !self.fill().await {
                return None;
            }
        }
    }

    /// A head, with its empty line.
    pub(crate) async fn head(&mut self) -> Option<String> {
        let head = self.until(b"\r\n\r\n").await?;
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    /// The next part of a body framed so; `framing` is what is left afterwards.
    pub(crate) async fn data(&mut self, framing: &mut Framing) -> Data {
        loop {
            match *framing {
                Framing::Empty | Framing::Length(0) => return Data::End(Vec::new()),
                Framing::Length(left) => return self.piece(left, framing, Framing::Length).await,
                Framing::Close => return self.rest(framing).await,
                Framing::Chunked(0) => match self.chunk_size().await {
                    None => return Data::Cut,
                    Some(0) => return self.chunked_end(framing).await,
                    Some(size) => *framing = Framing::Chunked(size),
                },
                Framing::Chunked(left) => {
                    let piece = self.piece(left, framing, Framing::Chunked).await;
                    if *framing == Framing::Chunked(0)
                        && self.until(b"\r\n").await.as_deref() != Some(b"\r\n")
                    {
                        return Data::Cut;
                    }
                    return piece;
                }
            }
        }
    }

    async fn piece(&mut self, left: u64, framing: &mut Framing, next: fn(u64) -> Framing) -> Data {
        if self.buffer.is_empty() && !self.fill().await {
            return Data::Cut;
        }
        let size = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let rest = self.buffer.split_off(size);
        *framing = next(left - size as u64);
        Data::Bytes(std::mem::replace(&mut self.buffer, rest))
    }

    async fn rest(&mut self, framing: &mut Framing) -> Data {
        if self.buffer.is_empty() {
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    *framing = Framing::Empty;
                    return Data::End(Vec::new());
                }
                Ok(_) => {}
                Err(_) => return Data::Cut,
            }
        }
        Data::Bytes(self.take_rest())
    }

    async fn chunk_size(&mut self) -> Option<u64> {
        let line = self.until(b"\r\n").await?;
        let digits = String::from_utf8_lossy(&line).split(';').next().unwrap_or_default().trim().to_owned();
        u64::from_str_radix(&digits, 16).ok()
    }

    async fn chunked_end(&mut self, framing: &mut Framing) -> Data {
        let mut trailers = Vec::new();
        loop {
            let Some(line) = self.until(b"\r\n").await else { return Data::Cut };
            if line == b"\r\n" {
                *framing = Framing::Empty;
                return Data::End(trailers);
            }
            trailers.extend(parse_headers(&format!("\r\n{}", String::from_utf8_lossy(&line))));
        }
    }
}
