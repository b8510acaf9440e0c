//! What an image in a prompt costs, by OpenAI's rule for its GPT-4 models
//! (platform.openai.com/docs/guides/images-vision, "Calculating costs"): 85 tokens, and 170 for each tile of 512 by 512
//! after it was made to fit into 2048 by 2048, and its shorter side into 768; seen with low detail, 85 alone.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

const BASE: u64 = 85;
const TILE: u64 = 170;
/// An image of 1024 by 1024, where the size is not known: its four tiles are what most photographs come to.
const TYPICAL: (u32, u32) = (1024, 1024);

/// An image of a request, as far as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Whether there is one at all.
    pub(super) present: bool,
    /// Pixels across and down, where the image stands in the request itself and its header says so.
    pub(super) size: Option<(u32, u32)>,
    /// It is looked at with low detail.
    pub(super) low: bool,
}

impl Image {
    /// The image at `source`: a URL, a `data:` URL, or bare base64.
    pub(super) fn see(&mut self, source: &str) {
        self.present = !source.is_empty();
        self.size = embedded(source).and_then(|encoded| size(&decoded_start(encoded)?));
    }

    /// Its tokens, and whether they are a guess.
    pub(super) fn tokens(self) -> (u64, bool) {
        if self.low {
            return (BASE, false);
        }
        let (width, height) = self.size.unwrap_or(TYPICAL);
        (BASE + TILE * tiles(width, height), self.size.is_none())
    }
}

/// The base64 of an image that stands in the request itself.
fn embedded(source: &str) -> Option<&str> {
    match source.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, encoded)| encoded),
        None => (!source.contains("://")).then_some(source),
    }
}

/// The first bytes behind a base64 text: as many as a header with a preview of the picture takes.
fn decoded_start(encoded: &str) -> Option<Vec<u8>> {
    const ENOUGH: usize = 128 << 10;
    let start = encoded.as_bytes().get(..encoded.len().min(ENOUGH))?;
    let whole = &start[..start.len() - start.len() % 4];
    STANDARD.decode(whole).or_else(|_| STANDARD_NO_PAD.decode(whole)).ok()
}

/// Width and height by the header of a PNG, GIF, WebP or JPEG.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let be16 = |at: usize| Some(u32::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let le16 = |at: usize| Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        // The first chunk is IHDR (PNG specification, 11.2.1).
        let be32 = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        return Some((be32(16)?, be32(20)?));
    }
    if bytes.starts_with(b"GIF8") {
        return Some((le16(6)?, le16(8)?));
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return match bytes.get(12..16)? {
            b"VP8 " => Some((le16(26)? & 0x3fff, le16(28)? & 0x3fff)),
            b"VP8L" => {
                let bits = u32::from_le_bytes(bytes.get(21..25)?.try_into().ok()?);
                Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
            }
            b"VP8X" => {
                let le24 = |at: usize| Some(le16(at)? | u32::from(*bytes.get(at + 2)?) << 16);
                Some((le24(24)? + 1, le24(27)? + 1))
            }
            _ => None,
        };
    }
    if bytes.starts_with(b"\xff\xd8") {
        let mut at = 2;
        // Segment by segment to the frame's header (ITU T.81, B.2.2): C0 to CF but DHT, JPG and DAC.
        while *bytes.get(at)? == 0xff {
            let marker = *bytes.get(at + 1)?;
            if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
                return Some((be16(at + 7)?, be16(at + 5)?));
            }
            at += 2 + be16(at + 2)? as usize;
        }
    }
    None
}

fn tiles(width: u32, height: u32) -> u64 {
    let (mut width, mut height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let shrink = (2048.0 / width.max(height)).min(1.0);
    (width, height) = (width * shrink, height * shrink);
    let shrink = (768.0 / width.min(height)).min(1.0);
    let across = |side: f64| (side * shrink / 512.0).ceil().max(1.0) as u64;
    across(width) * across(height)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(source: &str) -> (u64, bool) {
        let mut image = Image::default();
        image.see(source);
        image.tokens()
    }

    fn png(width: u32, height: u32) -> String {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([8, 2, 0, 0, 0]);
        format!("data:image/png;base64,{}", STANDARD.encode(bytes))
    }

    #[test]
    fn the_pages_own_examples_cost_what_it_says() {
        assert_eq!(tokens(&png(1024, 1024)), (765, false));
        assert_eq!(tokens(&png(2048, 4096)), (1105, false));
        let low = Image { present: true, low: true, size: Some((4096, 8192)) };
        assert_eq!(low.tokens(), (85, false));
        assert_eq!(tokens(&png(512, 512)), (255, false));
    }

    #[test]
    fn an_image_of_unknown_size_is_a_guess() {
        for source in ["https://example.com/a.png", "data:image/png;base64,AAAA", "data:,x", "%%%"] {
            assert_eq!(tokens(source), (765, true), "{source}");
        }
    }

    #[test]
    fn the_size_is_read_from_each_kind_of_header() {
        let gif = b"GIF89a\x00\x02\x00\x01\0\0\0";
        assert_eq!(size(gif), Some((512, 256)));
        let jpeg = b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xc0\x00\x11\x08\x01\x00\x02\x00\x03";
        assert_eq!(size(jpeg), Some((512, 256)));
        let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        webp.extend([0xff, 0x01, 0, 0xff, 0, 0]);
        assert_eq!(size(&webp), Some((512, 256)));
        assert_eq!(size(b"\xff\xd8\xff"), None);
        assert_eq!(size(b""), None);
    }
}
