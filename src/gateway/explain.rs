//! What this replica knows of why a tenant may use what it may, for the admin API.

use std::sync::Arc;

use jiff::Timestamp;

use crate::admin::{ExplainSource, Explained, QuotaSource, ServicePlan};
use crate::model::quota::Limits;
use crate::proxy::Core;
use crate::store::Store;
use crate::tenant::Answer;

/// Asks the parts. The plan is looked up as the data path does; `quota` says how the tenant stands.
pub(super) fn source(core: Arc<Core>, store: Store, quota: QuotaSource) -> ExplainSource {
    Arc::new(move |tenant| {
        let (core, store, quota, tenant) = (core.clone(), store.clone(), quota.clone(), tenant.clone());
        Box::pin(async move {
            let (said, plans) = core.service_plan(&tenant).await;
            let quota = quota(&tenant).await;
            // A reload in between may have taken the plan away: then there is no more to say of it than its name.
            let plan = plans.named(quota.plan.as_str());
            Explained {
                service: match said {
                    None => ServicePlan::NotAsked,
                    Some(Answer::Known(plan)) => ServicePlan::Known(plan.as_ref().to_owned()),
                    Some(Answer::Absent) => ServicePlan::Absent,
                    Some(Answer::Unavailable(_)) => ServicePlan::Unavailable,
                },
                default_plan: plans.default_plan().clone(),
                plan_limits: plan.map_or_else(|| Arc::new(Limits::unlimited()), |plan| plan.limits.clone()),
                zone: plan.and_then(|plan| plan.zone.iana_name()).unwrap_or("UTC").to_owned(),
                config: plans.config_override(&tenant).cloned(),
                holdings: core.enforcer.holdings(&tenant, Timestamp::now()),
                footing: core.enforcer.footing(),
                run: core.enforcer.run(),
                replica_id: store.replica_id().map(str::to_owned),
                quota,
            }
        })
    })
}
