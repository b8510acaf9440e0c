//! Cursors: where the next page begins, opaque to the caller and sealed against forging.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::Problem;

/// A longer cursor was not made here.
const MAX_BYTES: usize = 1024;

/// Bytes of the seal: 128 bits of an HMAC-SHA-256.
const SEAL_BYTES: usize = 16;

/// Seals cursors, and knows its own again.
///
/// The key comes from the admin tokens, so that every replica behind one address knows the others' cursors, and
/// a restart forgets none; changing a token ends the pages that were being turned, which is what one wants of it.
pub(super) struct Cursors(hmac::Key);

impl Cursors {
    /// A sealer whose key is derived from `secrets`.
    pub(super) fn new(secrets: &[Option<&str>]) -> Self {
        let mut key = Vec::from(*b"tollgate admin cursor v1");
        for secret in secrets {
            let secret = secret.unwrap_or_default().as_bytes();
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            key.extend_from_slice(&(secret.len() as u64).to_be_bytes());
            key.extend_from_slice(secret);
        }
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// Seals `place`, which is where `question` (everything that the pages depend on) goes on.
    pub(super) fn seal(&self, question: &str, place: &str) -> String {
        let mut bytes = self.mac(question, place);
        bytes.extend_from_slice(place.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place in `cursor`; refused unless it was sealed here, for this very question.
    pub(super) fn open(&self, question: &str, cursor: &str) -> Result<String, Problem> {
        let forged =
            || Problem::parameter("cursor", "is not one that this call gave out for the same question");
        if cursor.len() > MAX_BYTES {
            return Err(forged());
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| forged())?;
        let (seal, place) = bytes.split_at_checked(SEAL_BYTES).ok_or_else(forged)?;
        let place = std::str::from_utf8(place).map_err(|_| forged())?;
        let good: bool = subtle::ConstantTimeEq::ct_eq(seal, self.mac(question, place).as_slice()).into();
        if good { Ok(place.to_owned()) } else { Err(forged()) }
    }

    fn mac(&self, question: &str, place: &str) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&(question.len() as u64).to_be_bytes());
        context.update(question.as_bytes());
        context.update(place.as_bytes());
        context.sign().as_ref()[..SEAL_BYTES].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_opens_for_its_own_question_and_on_every_replica() {
        let (here, there) = (Cursors::new(&[Some("a"), None]), Cursors::new(&[Some("a"), None]));
        let cursor = here.seal("usage of tn_one", "2026-11-24");
        assert_eq!(there.open("usage of tn_one", &cursor).unwrap(), "2026-11-24");
        assert!(there.open("usage of tn_two", &cursor).is_err());
        assert!(Cursors::new(&[Some("b"), None]).open("usage of tn_one", &cursor).is_err());
    }

    #[test]
    fn fault_100_a_forged_cursor_is_refused() {
        let cursors = Cursors::new(&[Some("secret"), None]);
        let cursor = cursors.seal("q", "5|tn_one");
        for at in 0..cursor.len() {
            let mut forged = cursor.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert!(cursors.open("q", std::str::from_utf8(&forged).unwrap()).is_err(), "{at}");
        }
        let long = "A".repeat(4096);
        for forged in ["", "A", "MTIz", "1 OR 1=1", &cursor[..20], &format!("{cursor}A"), &long] {
            assert!(cursors.open("q", forged).is_err(), "{forged}");
        }
    }
}
