//! Recorded calls against other limits: `tollgate what-if`.
//!
//! 1. Each tenant's calls go through a ledger of the kind that admits them when they are made, in the order in which they
//!    came, at the times at which they came, and are settled when they ended: windows, reservations and the rule of
//!    admission are those of [`quota`](crate::quota), not a copy. It is one replica with no leases.
//! 2. A call that is refused uses nothing, and leaves its room to a later one.
//! 3. What a call that was refused would have used, nobody knows: it is taken to use what it asked for, and to last as long
//!    as the tenant's others did on average. What it asked for is in its row.
//! 4. The limits change at the beginning of the range. What was used before, in windows that run then, is used.
//! 5. In memory are the calls of a batch, those in flight of one tenant, and one line for each tenant and dimension that refuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::model::billing::Billing;
use crate::model::event::EventType;
use crate::model::quota::{Amounts, Dimension};
use crate::model::tenant::{PlanName, TenantId};
use crate::model::tokens::TokenUsage;
use crate::model::window::Window;
use crate::proxy::{Enforce, RouteConfig};
use crate::quota::{Enforcer, Overrides, Plans, Reservation};
use crate::settings::Settings;
use crate::store::replay::Call;
use crate::store::report::Between;
use crate::store::{Store, overrides};
use crate::telemetry::Metrics;
use crate::tenant::TenantSource;

/// Reserved for a message on a route that the config does not have any more: what the service itself assumed.
const RESERVED_TOKENS: u64 = 150;

/// What is asked.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// From when on the limits are others.
    pub since: Timestamp,
    /// The first instant of which nothing is asked.
    pub until: Timestamp,
    /// Only this tenant.
    pub tenant: Option<TenantId>,
    /// The plan of every tenant, one of the settings', instead of what the service's database says.
    pub plan: Option<PlanName>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Tenants that made a call in the range.
    pub tenants: u64,
    /// Calls in the range.
    pub calls: u64,
    /// Of them, those that would be refused.
    pub refused: u64,
    /// Those that were refused when they were made.
    pub refused_then: u64,
    /// Those that were refused when they were made and would not be.
    pub freed: u64,
    /// Who would be refused, and by what: the most refused first.
    pub refusals: Vec<Refusals>,
    /// Tenants whose plan the service's database did not tell, for an error: taken to be on the default plan.
    pub plans_unknown: u64,
    /// Before this instant events are gone, where the range or a window that runs at its beginning reaches back so far.
    pub gone_before: Option<Timestamp>,
}

/// A tenant's refusals by one dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// Whose.
    pub tenant: TenantId,
    /// The plan that it is on.
    pub plan: PlanName,
    /// By what.
    pub dimension: Dimension,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
    /// How many.
    pub refused: u64,
    /// Of how many calls of the tenant.
    pub calls: u64,
    /// Tokens that they used and would not have.
    pub tokens: u64,
    /// What that cost, in nano-dollars.
    pub cost_nanousd: u64,
}

/// Replays what `store` has against the limits of `settings`.
pub(super) async fn replay(
    settings: &Settings,
    store: &Store,
    question: &WhatIf,
) -> anyhow::Result<Replayed> {
    let (set, upto) = overrides::all(store).await?;
    let admin = Overrides::new();
    admin.replace(&set, upto);
    let (plans, overridden) = (settings.plans.clone(), settings.overrides.clone());
    let metrics = Metrics::new();
    let plans = Plans::new(plans, overridden, settings.default_plan.clone(), metrics.clone())
        .map_err(|why| settings.fault("plans", why))?
        .with_admin(admin.clone());
    let source: Arc<dyn TenantSource> = match &settings.service_database {
        Some(config) => Arc::new(
            Store::new(config).map_err(|error| settings.fault("service_database.url", error.to_string()))?,
        ),
        None => Arc::new(store.clone()),
    };

    let start = warm_up(settings, set.iter().filter_map(|change| change.target.window()), question.since);
    let mut stage =
        Stage { settings, question, plans, metrics, source, run: None, done: Replayed::default() };
    let between = Between { start, end: question.until };
    store.replay(between, question.tenant.as_ref(), async |calls| stage.play_all(calls).await).await?;
    let mut done = stage.end();
    done.gone_before = store.retained_from().await?.filter(|from| *from > start);
    done.refusals.sort_by(|a, b| {
        b.refused.cmp(&a.refused).then_with(|| (&a.tenant, a.dimension).cmp(&(&b.tenant, b.dimension)))
    });
    Ok(done)
}

/// Where reading begins, so that what was used before `since` in a window that runs then is known.
fn warm_up(settings: &Settings, also: impl Iterator<Item = Window>, since: Timestamp) -> Timestamp {
    let of_plans = settings.plans.values().flat_map(|plan| plan.limits.iter());
    let of_overrides = settings.overrides.values().flat_map(|set| set.limits.iter().copied());
    let limited = of_plans.chain(of_overrides).filter(|(_, limit)| limit.is_some());
    let windows = limited.map(|(dimension, _)| dimension.window).chain(also);
    let Some(longest) = windows.filter(|window| *window != Window::Moment).max() else { return since };
    let zones = settings.plans.values().filter_map(|plan| jiff::tz::TimeZone::get(&plan.zone).ok());
    zones.map(|zone| longest.span(&zone, since).start).fold(since, Timestamp::min)
}

/// The replay as a whole.
struct Stage<'a> {
    settings: &'a Settings,
    question: &'a WhatIf,
    plans: Plans,
    metrics: Arc<Metrics>,
    source: Arc<dyn TenantSource>,
    /// The tenant whose calls are played.
    run: Option<Run>,
    done: Replayed,
}

/// One tenant's calls, from the first to the last.
struct Run {
    tenant: TenantId,
    /// What the service's database says.
    plan: Option<String>,
    enforcer: Arc<Enforcer>,
    /// By their end; the number tells apart those that end together.
    in_flight: BTreeMap<(Timestamp, u64), (Reservation, Amounts)>,
    admitted: u64,
    calls: u64,
    refusals: BTreeMap<Dimension, Refusals>,
    /// How long those that were served took, in microseconds, and how many they are.
    served_us: (u64, u64),
}

impl Stage<'_> {
    async fn play_all(&mut self, calls: Vec<Call>) {
        for call in calls {
            if self.run.as_ref().is_none_or(|run| run.tenant != call.tenant) {
                self.close();
                self.run = Some(self.open(&call.tenant).await);
            }
            if let Some(mut run) = self.run.take() {
                for _ in 0..call.times {
                    self.play(&mut run, &call);
                }
                self.run = Some(run);
            }
        }
    }

    async fn open(&mut self, tenant: &TenantId) -> Run {
        let plan = match (&self.question.plan, &self.settings.identify.plan_query) {
            (Some(plan), _) => Some(plan.to_string()),
            (None, None) => None,
            (None, Some(query)) => {
                self.source.look_up(query, tenant.as_str()).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, %tenant, "a plan could not be looked up");
                    self.done.plans_unknown += 1;
                    None
                })
            }
        };
        Run {
            tenant: tenant.clone(),
            plan,
            enforcer: Enforcer::new(self.metrics.clone()),
            in_flight: BTreeMap::new(),
            admitted: 0,
            calls: 0,
            refusals: BTreeMap::new(),
            served_us: (0, 0),
        }
    }

    fn play(&mut self, run: &mut Run, call: &Call) {
        run.settle_until(call.at);
        let entitlement = self.plans.entitlement(&run.tenant, run.plan.as_deref(), call.at);
        let route = route(self.settings, call);
        let asked = call.asked.unwrap_or_else(|| self.asked(call, route));
        // What was before the range happened as it did.
        let asks = call.at >= self.question.since;
        if !asks && call.refused {
            return;
        }
        run.calls += u64::from(asks);
        self.done.calls += u64::from(asks);
        self.done.refused_then += u64::from(asks && call.refused);
        let enforce = asks && route.is_none_or(|route| route.enforce != Enforce::Off);
        match run.enforcer.reserve(&run.tenant, &entitlement, asked, enforce, call.at) {
            Ok(reservation) => {
                self.done.freed += u64::from(asks && call.refused);
                run.admit(call, reservation, asked);
            }
            Err(refusal) => {
                self.done.refused += 1;
                run.refuse(call, refusal.standing.dimension, &entitlement.plan);
            }
        }
    }

    /// What a call asked for whose row does not say, by the same rule as the data path: so much for each message.
    fn asked(&self, call: &Call, route: Option<&RouteConfig>) -> Amounts {
        let of = |event: EventType, count: u64| if call.event == event.as_str() { count.max(1) } else { 0 };
        let messages = of(EventType::ChatMessage, call.used.chat_messages);
        let embeddings = of(EventType::Embedding, call.used.embeddings);
        let each = route.map_or(RESERVED_TOKENS, |route| route.reserve_tokens);
        let tokens = each.saturating_mul(messages.max(embeddings).max(1));
        let (price, _) = self.settings.prices.price(call.model.as_deref(), call.at);
        let usage = TokenUsage { output: Some(tokens), ..TokenUsage::default() };
        Amounts {
            tokens,
            api_calls: 1,
            chat_messages: messages,
            embeddings,
            cost_nanousd: price.cost_nanousd(&usage, &Billing::default()),
            concurrent: 1,
        }
    }

    /// Ends the present tenant's run.
    fn close(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.done.tenants += u64::from(run.calls > 0);
        let calls = run.calls;
        self.done.refusals.extend(run.refusals.into_values().map(|refusals| Refusals { calls, ..refusals }));
    }

    fn end(mut self) -> Replayed {
        self.close();
        self.done
    }
}

/// The route that a call came by.
fn route<'a>(settings: &'a Settings, call: &Call) -> Option<&'a RouteConfig> {
    let takes = |route: &&RouteConfig| {
        let method = |method: &http::Method| method.as_str() == call.method;
        route.path == call.endpoint && (route.methods.is_empty() || route.methods.iter().any(method))
    };
    settings.routes.iter().find(takes)
}

impl Run {
    /// Settles what has ended.
    fn settle_until(&mut self, now: Timestamp) {
        while self.in_flight.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            if let Some((_, (reservation, used))) = self.in_flight.pop_first() {
                reservation.settle(used);
            }
        }
    }

    fn admit(&mut self, call: &Call, reservation: Reservation, asked: Amounts) {
        let used = if call.refused { Amounts { concurrent: 0, ..asked } } else { call.used };
        let lasted_us = if call.refused {
            self.served_us.0 / self.served_us.1.max(1)
        } else {
            // Rounded half up: the least that it can have been, so that calls in a row do not overlap.
            let lasted_us = (call.response_time_ms.unwrap_or(0) * 1000).saturating_sub(500);
            self.served_us = (self.served_us.0.saturating_add(lasted_us), self.served_us.1 + 1);
            lasted_us
        };
        let lasted = SignedDuration::from_micros(i64::try_from(lasted_us).unwrap_or(i64::MAX));
        self.admitted += 1;
        self.in_flight.insert(
            (call.at.saturating_add(lasted).unwrap_or(Timestamp::MAX), self.admitted),
            (reservation, used),
        );
    }

    fn refuse(&mut self, call: &Call, dimension: Dimension, plan: &PlanName) {
        let refusals = self.refusals.entry(dimension).or_insert_with(|| Refusals {
            tenant: self.tenant.clone(),
            plan: plan.clone(),
            dimension,
            first: call.at,
            last: call.at,
            refused: 0,
            calls: 0,
            tokens: 0,
            cost_nanousd: 0,
        });
        refusals.last = call.at;
        refusals.refused += 1;
        refusals.tokens = refusals.tokens.saturating_add(call.used.tokens);
        refusals.cost_nanousd = refusals.cost_nanousd.saturating_add(call.used.cost_nanousd);
    }
}
