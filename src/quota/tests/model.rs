//! The ledger against a naive model, over random exchanges and clocks.

use proptest::prelude::*;

use super::*;

/// What the exchanges of a run look like from outside: every window that ever was, and who is in flight. Nothing is
/// ever subtracted; what is reserved is summed up anew each time it is asked for.
struct Model {
    entitlement: Entitlement,
    /// For each dimension its windows, the current one last.
    windows: Vec<(Dimension, Limit, Vec<Seen>)>,
    /// What each exchange in flight reserved, and the index of its window in each dimension.
    in_flight: Vec<(Reservation, Amounts, Vec<usize>)>,
}

/// A window: first second, first second after it, and what was settled in it.
type Seen = (i64, i64, u64);

impl Model {
    fn new(entitlement: Entitlement) -> Self {
        let windows =
            entitlement.limits.iter().map(|(dimension, limit)| (dimension, limit, Vec::new())).collect();
        Self { entitlement, windows, in_flight: Vec::new() }
    }

    fn look(&mut self, now: Timestamp) {
        for (dimension, _, windows) in &mut self.windows {
            let span = dimension.window.span(&self.entitlement.zone, now);
            let (start, end, now) = (span.start.as_second(), span.end.as_second(), now.as_second());
            match windows.last_mut() {
                Some((_, until, _)) if now >= *until => windows.push((start, end, 0)),
                Some((from, until, _)) if *from - now > *until - *from => (*from, *until) = (start, end),
                Some(_) => {}
                None => windows.push((start, end, 0)),
            }
        }
    }

    fn taken(&self, at: usize) -> u64 {
        let (dimension, _, windows) = &self.windows[at];
        let here = self.in_flight.iter().filter(|(_, _, indices)| indices[at] == windows.len() - 1);
        windows.last().unwrap().2 + here.map(|(_, amounts, _)| amounts.of(dimension.unit)).sum::<u64>()
    }

    fn fits(&self, amounts: &Amounts) -> bool {
        self.windows.iter().enumerate().all(|(at, (dimension, limit, _))| {
            let need = amounts.of(dimension.unit);
            need == 0 || limit.is_none_or(|limit| self.taken(at) + need <= limit)
        })
    }
}

/// What makes a ledger look at the clock in every dimension.
const ONE_OF_EACH: Amounts =
    Amounts { tokens: 1, api_calls: 1, chat_messages: 1, embeddings: 1, cost_nanousd: 0, concurrent: 0 };

#[derive(Clone, Debug)]
enum Step {
    Reserve(Amounts, bool),
    Settle(prop::sample::Index, Amounts),
    Drop(prop::sample::Index),
    Pass(i64),
    Evict,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amounts = || {
        (0..40_u64, 0..3_u64, 0..3_u64, 0..2_u64).prop_map(
            |(tokens, api_calls, chat_messages, embeddings)| Amounts {
                tokens,
                api_calls,
                chat_messages,
                embeddings,
                ..Amounts::default()
            },
        )
    };
    let step = prop_oneof![
        6 => (amounts(), prop::bool::weighted(0.9)).prop_map(|(amounts, enforce)| Step::Reserve(amounts, enforce)),
        3 => (any::<prop::sample::Index>(), amounts()).prop_map(|(which, used)| Step::Settle(which, used)),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
        2 => (0..90_i64).prop_map(Step::Pass),
        1 => prop_oneof![-100..0_i64, -90_000..0_i64, 0..90_000_i64].prop_map(Step::Pass),
        1 => Just(Step::Evict),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_is_the_sum_of_what_happened(steps in steps(), hourly in any::<bool>()) {
        let hour = Dimension { unit: crate::model::quota::Unit::Tokens, window: crate::model::window::Window::Hour };
        let mut limits = vec![(TOKENS, Some(400)), (CALLS, Some(12)), (MESSAGES, Some(60)), (EMBEDDINGS, None)];
        if hourly {
            limits.push((hour, Some(120)));
        }
        let (metrics, id) = (Metrics::new(), tenant("tn_one"));
        let enforcer = Enforcer::new(metrics.clone());
        let mut model = Model::new(limited_in("Europe/Berlin", &limits));
        let mut now_s = at("2026-10-24T21:30:00Z").as_second();
        for step in steps {
            let now = Timestamp::from_second(now_s).unwrap();
            match step {
                Step::Pass(seconds) => now_s += seconds,
                // Forgetting a tenant must change nothing; the model forgets only what makes no difference.
                Step::Evict => {
                    enforcer.evict(now);
                    if metrics.tenants.get() == 0 {
                        prop_assert!(model.in_flight.is_empty());
                        model.windows.iter_mut().for_each(|(_, _, windows)| {
                            prop_assert_idle(windows, now_s);
                            windows.clear();
                        });
                    }
                }
                Step::Reserve(amounts, enforce) => {
                    model.look(now);
                    let fits = model.fits(&amounts);
                    match enforcer.reserve(&id, &model.entitlement, amounts, enforce, now) {
                        Ok(held) => {
                            prop_assert!(fits || !enforce);
                            prop_assert_eq!(held.would_refuse().is_none(), fits);
                            let indices = model.windows.iter().map(|(_, _, windows)| windows.len() - 1).collect();
                            model.in_flight.push((held, amounts, indices));
                        }
                        Err(refusal) => {
                            prop_assert!(enforce && !fits);
                            let limit = refusal.standing.limit.unwrap();
                            prop_assert!(refusal.standing.used + refusal.needed > limit);
                        }
                    }
                }
                Step::Settle(which, used) if !model.in_flight.is_empty() => {
                    let (held, reserved, indices) = model.in_flight.swap_remove(which.index(model.in_flight.len()));
                    let used = Amounts {
                        chat_messages: used.chat_messages.min(reserved.chat_messages),
                        embeddings: used.embeddings.min(reserved.embeddings),
                        ..used
                    };
                    let spans: Vec<_> = held.standings().iter().map(|standing| standing.span).collect();
                    let charges = held.settle(used);
                    for (at, (dimension, _, windows)) in model.windows.iter_mut().enumerate() {
                        windows[indices[at]].2 += used.of(dimension.unit);
                        let charge = charges.iter().find(|charge| charge.dimension == *dimension);
                        prop_assert_eq!(charge.map_or(0, |c| c.amount as u64), used.of(dimension.unit));
                        prop_assert!(charge.is_none_or(|c| c.window_start == spans[at].start));
                    }
                }
                Step::Drop(which) if !model.in_flight.is_empty() => {
                    model.in_flight.swap_remove(which.index(model.in_flight.len()));
                }
                Step::Settle(..) | Step::Drop(_) => {}
            }
            let now = Timestamp::from_second(now_s).unwrap();
            model.look(now);
            // The counters have looked at the clock only when someone asked them to; standings do so on a copy.
            let standings = enforcer.standings(&id, &model.entitlement, now);
            drop(enforcer.reserve(&id, &model.entitlement, ONE_OF_EACH, false, now).unwrap());
            for (at, standing) in standings.iter().enumerate() {
                let (start, end, _) = *model.windows[at].2.last().unwrap();
                prop_assert_eq!(standing.used, model.taken(at), "{}", standing.dimension);
                prop_assert_eq!((standing.span.start.as_second(), standing.span.end.as_second()), (start, end));
            }
            prop_assert_eq!(enforcer.reservations(), model.in_flight.len() as u64);
        }
        model.in_flight.clear();
        prop_assert_eq!(enforcer.reservations(), 0);
        let now = Timestamp::from_second(now_s).unwrap();
        model.look(now);
        for (at, standing) in enforcer.standings(&id, &model.entitlement, now).iter().enumerate() {
            prop_assert_eq!(standing.used, model.windows[at].2.last().unwrap().2);
        }
    }
}

fn prop_assert_idle(windows: &[Seen], now_s: i64) {
    assert!(windows.last().is_none_or(|(_, end, used)| *used == 0 || now_s >= *end), "use was forgotten");
}
