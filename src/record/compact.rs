//! The payload of an intent: MessagePack without names.
//!
//! There is one for each request, it is read at a start only, and no longer kept than its exchange lasts: so it is as
//! small as can be, and needs no room for what other releases may add. A change of anything here, the order of fields
//! or of [`EVENTS`], [`UNITS`] and [`WINDOWS`] included, is another version of the payload.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::model::event::EventType;
use crate::model::intent::Intent;
use crate::model::quota::{Amounts, Charge, Dimension, Unit};
use crate::model::tenant::TenantId;
use crate::model::window::Window;

const EVENTS: [EventType; 5] = [
    EventType::ApiCall,
    EventType::ChatMessage,
    EventType::Embedding,
    EventType::Search,
    EventType::KbIngest,
];
const UNITS: [Unit; 5] = [Unit::Tokens, Unit::ApiCalls, Unit::ChatMessages, Unit::Embeddings, Unit::Cost];
const WINDOWS: [Window; 4] = [Window::Minute, Window::Hour, Window::Day, Window::Month];

/// An intent, by position.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    event_id: Uuid,
    #[serde(borrow)]
    tenant: &'a str,
    event: u8,
    /// In microseconds since 1970.
    at: i64,
    method: &'a str,
    endpoint: &'a str,
    session: Option<&'a str>,
    model: Option<&'a str>,
    request_id: &'a str,
    /// In the order of [`UNITS`].
    reserved: [u64; 5],
    charges: Vec<Charged>,
    lease_run: u64,
    metadata: Option<Map<String, Value>>,
}

/// A charge of what is reserved of its unit. Windows begin and end at whole seconds.
#[derive(Serialize, Deserialize)]
struct Charged {
    unit: u8,
    window: u8,
    /// In seconds since 1970.
    starts: i64,
    /// In seconds.
    lasts: i64,
    limit: Option<u64>,
}

/// Appends the payload to `out`.
pub(super) fn write(intent: &Intent, out: &mut Vec<u8>) -> Result<(), String> {
    let charges = intent.charges.iter().map(|charge| {
        Some(Charged {
            unit: place(&UNITS, charge.dimension.unit)?,
            window: place(&WINDOWS, charge.dimension.window)?,
            starts: charge.window_start.as_second(),
            lasts: charge.window_end.as_second() - charge.window_start.as_second(),
            limit: charge.limit,
        })
    });
    let wire = Wire {
        event_id: intent.event_id,
        tenant: intent.tenant_id.as_str(),
        event: place(&EVENTS, intent.event_type).ok_or("an event type without a place")?,
        at: intent.at.as_microsecond(),
        method: &intent.method,
        endpoint: &intent.endpoint,
        session: intent.chat_session_id.as_deref(),
        model: intent.model.as_deref(),
        request_id: &intent.request_id,
        reserved: UNITS.map(|unit| intent.reserved.of(unit)),
        charges: charges.collect::<Option<_>>().ok_or("a charge that has no window")?,
        lease_run: intent.lease_run,
        metadata: Some(&intent.metadata).filter(|metadata| !metadata.is_empty()).cloned(),
    };
    rmp_serde::encode::write(out, &wire).map_err(|e| e.to_string())
}

/// Reads a payload.
pub(super) fn read(payload: &[u8]) -> Result<Intent, String> {
    let wire: Wire<'_> = rmp_serde::from_slice(payload).map_err(|e| e.to_string())?;
    let mut reserved = Amounts::default();
    for (unit, amount) in UNITS.into_iter().zip(wire.reserved) {
        *reserved.of_mut(unit) = amount;
    }
    let charges = wire.charges.iter().map(|charged| charge(charged, &reserved));
    Ok(Intent {
        event_id: wire.event_id,
        tenant_id: TenantId::parse(wire.tenant).map_err(|e| e.to_string())?,
        event_type: *at(&EVENTS, wire.event)?,
        at: Timestamp::from_microsecond(wire.at).map_err(|e| e.to_string())?,
        method: wire.method.to_owned(),
        endpoint: wire.endpoint.to_owned(),
        chat_session_id: wire.session.map(str::to_owned),
        model: wire.model.map(str::to_owned),
        request_id: wire.request_id.to_owned(),
        charges: charges.collect::<Result<_, String>>()?,
        reserved,
        lease_run: wire.lease_run,
        metadata: wire.metadata.unwrap_or_default(),
    })
}

fn charge(charged: &Charged, reserved: &Amounts) -> Result<Charge, String> {
    let dimension = Dimension { unit: *at(&UNITS, charged.unit)?, window: *at(&WINDOWS, charged.window)? };
    let second = |second| Timestamp::from_second(second).map_err(|e| e.to_string());
    Ok(Charge {
        dimension,
        window_start: second(charged.starts)?,
        window_end: second(charged.starts.saturating_add(charged.lasts))?,
        amount: i64::try_from(reserved.of(dimension.unit)).unwrap_or(i64::MAX),
        limit: charged.limit,
    })
}

fn place<T: PartialEq>(all: &[T], one: T) -> Option<u8> {
    all.iter().position(|known| *known == one).and_then(|place| u8::try_from(place).ok())
}

fn at<T>(all: &[T], place: u8) -> Result<&T, String> {
    all.get(usize::from(place)).ok_or_else(|| format!("{place} is not known to this release"))
}
