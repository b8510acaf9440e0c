//! What the values that a format points at are good for.

use std::sync::Arc;

use super::super::usage::Class;
use super::super::wanted::want;

/// What a value of an answer is good for.
#[derive(Clone, Debug)]
pub(in crate::meter) enum Action {
    Count(Count),
    /// One more of something.
    CountWhen {
        shape: u8,
        class: Class,
        names: Arc<[String]>,
    },
    /// A part of a usage has this name; the names are those of parts that the usage includes.
    PartName(Arc<[String]>),
    /// An object with a name and a count, its name, and its count.
    Named,
    Name,
    NamedCount,
    Tier,
    /// The cost is not the whole cost.
    NoCost,
    /// An object that is one call, and how deep such objects are nested here.
    Call {
        depth: u8,
    },
    CallId {
        shape: u8,
        depth: u8,
        /// Whether a new one always begins a new call.
        strong: bool,
    },
    CallEnd {
        shape: u8,
    },
    WholeWhen {
        depth: u8,
        names: Arc<[String]>,
    },
    TurnWhen {
        depth: u8,
        names: Arc<[String]>,
    },
    Model {
        order: u8,
    },
    Message,
    /// An array of results, and one of them.
    Results,
    Result,
    Error,
    ErrorWhen(Arc<[String]>),
    ErrorUnless(Arc<[String]>),
    End,
    EndWhen(Arc<[String]>),
    Text,
    FinalText,
    Choice,
}

/// A count: whose, of what, and how far down its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meter) struct Count {
    pub(in crate::meter) shape: u8,
    pub(in crate::meter) class: Class,
    pub(in crate::meter) order: u8,
    /// In how many nested [`Action::Call`] objects it stands: 0 is none, the answer as a whole.
    pub(in crate::meter) depth: u8,
    /// It counts only where the parts of a usage are more than the usage.
    pub(in crate::meter) part: bool,
}

/// A count in a header.
#[derive(Debug)]
pub(in crate::meter) struct HeaderCount {
    pub(in crate::meter) name: String,
    pub(in crate::meter) shape: u8,
    pub(in crate::meter) class: Class,
}

pub(super) fn wants(action: &Action) -> u8 {
    match action {
        Action::Text | Action::FinalText => want::TEXT,
        Action::Count(_)
        | Action::CountWhen { .. }
        | Action::PartName(_)
        | Action::Name
        | Action::NamedCount
        | Action::Tier
        | Action::CallId { .. }
        | Action::WholeWhen { .. }
        | Action::TurnWhen { .. }
        | Action::Model { .. }
        | Action::ErrorWhen(_)
        | Action::ErrorUnless(_)
        | Action::EndWhen(_)
        | Action::Choice => want::SCALAR,
        Action::Error
        | Action::End
        | Action::CallEnd { .. }
        | Action::NoCost
        | Action::Message
        | Action::Result => want::SCALAR | want::CONTAINER,
        Action::Results | Action::Call { .. } | Action::Named => want::CONTAINER,
    }
}

/// What a value of a request is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meter) enum Ask {
    /// An element of an array of messages, and the member that makes it one.
    Element,
    Member,
    Embeddings,
    Text,
    Model,
    Session,
    Role,
    Name,
    Call,
    Aside,
    Tools,
    /// An image, and where it has one, its member that holds it, and the one that says how closely it is looked at.
    Image,
    ImageSource,
    ImageDetail,
}
