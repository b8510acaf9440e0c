//! Brotli, a step at a time.
//!
//! 1. One step gives at most one output buffer, however much its bytes stand for: the crate's own writer goes on until
//!    all of its input is written. (The decoder itself may fill its window, 16 MiB at most, in one step.)
//! 2. Windows beyond those of RFC 7932 are refused: the crate takes "large windows", of 1 GiB, where it isn't told.

use std::io::{self, Read};

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};

/// Input of one step: of an ordinary body it decodes to some KiB.
const INPUT: usize = 256;

/// A decoder.
pub(super) struct Brotli {
    state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
    next: Next,
}

/// What a decoder can go on with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Input,
    /// It holds output back.
    Output,
    /// Nothing: the coding's own end.
    Nothing,
}

impl Brotli {
    pub(super) fn new() -> Self {
        let alloc = StandardAlloc::default;
        let state = Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()));
        Self { state, next: Next::Input }
    }

    /// Whether there is more to come of what it has taken.
    pub(super) fn holds_output(&self) -> bool {
        self.next == Next::Output
    }

    /// Takes some of `input` and fills some of `output`: how many bytes of each.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        if self.next == Next::Nothing {
            return Ok((0, 0));
        }
        let input = &input[..input.len().min(INPUT)];
        let (mut room, mut available) = (output.len(), input.len());
        let (mut taken, mut given, mut total) = (0, 0, 0);
        let result = BrotliDecompressStream(
            &mut available,
            &mut taken,
            input,
            &mut room,
            &mut given,
            output,
            &mut total,
            &mut self.state,
        );
        self.next = match result {
            // It says so too when the room was not enough.
            BrotliResult::NeedsMoreInput if room > 0 => Next::Input,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Next::Output,
            BrotliResult::ResultSuccess => Next::Nothing,
            BrotliResult::ResultFailure => return Err(io::Error::other("not brotli")),
        };
        Ok((taken, given))
    }
}

/// Decodes what is here whole.
pub(super) struct BrotliReader<'a> {
    decoder: Brotli,
    input: &'a [u8],
}

impl<'a> BrotliReader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { decoder: Brotli::new(), input }
    }
}

impl Read for BrotliReader<'_> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        loop {
            if output.is_empty() || self.decoder.next == Next::Nothing {
                return Ok(0);
            }
            if self.input.is_empty() && self.decoder.next == Next::Input {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (taken, given) = self.decoder.step(self.input, output)?;
            self.input = &self.input[taken..];
            if given > 0 {
                return Ok(given);
            }
        }
    }
}
