//! What an exchange asked its quotas for, where its row does not tell: a refused one, and one that was not served. It is
//! what `tollgate what-if` replays, and what an operator is told of a refusal.

use serde_json::json;

use super::account::Open;
use crate::model::event::ASKED;
use crate::model::quota::Amounts;
use crate::quota::Refusal;

impl Open {
    /// Notes why the exchange is refused, in the units that people read, and what it asked for.
    pub(super) fn note_refusal(&mut self, refusal: &Refusal, amounts: Amounts) {
        let standing = &refusal.standing;
        let unit = standing.dimension.unit;
        let why = json!({
            "limit": standing.limit.map(|limit| unit.shown(limit)),
            "used": unit.shown(standing.used),
            "needed": unit.shown(refusal.needed),
            "resets_at": standing.span.end.to_string(),
        });
        self.metadata.insert("refusal".into(), why);
        self.note_asked(amounts);
    }

    /// Notes what was reserved for an exchange whose messages or embeddings are given back, if there were several: a
    /// row without any is one of a single message.
    pub(super) fn note_given_back(&mut self, reserved: Amounts, used: Amounts) {
        let pieces = |amounts: &Amounts| amounts.chat_messages.max(amounts.embeddings);
        if pieces(&reserved) > 1 && pieces(&used) == 0 {
            self.note_asked(reserved);
        }
    }

    fn note_asked(&mut self, amounts: Amounts) {
        self.metadata.insert(ASKED.into(), json!(amounts));
    }
}
