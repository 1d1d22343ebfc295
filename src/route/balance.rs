//! One target out of several: by weight, turn, load, latency, session or price.
//!
//! A target that should be left alone is not chosen as long as another can be. What is chosen is final: if it
//! fails, its error is the answer, as in the reference. Put a balance inside a fallback for more.

use super::{prepare, standing};
use crate::{
    call::{Call, Reply},
    config::{
        identity::Identity,
        plan::{Balance, Plan},
        strategy::{Policy, Sticky},
    },
    error::Result,
    health::NodeHealth,
};

/// Which throw of the dice decides what.
const FIRST_DRAW: u64 = 1;
const SECOND_DRAW: u64 = 2;
const ACCEPTS: u64 = 3;
const REDRAW: u64 = 4;

/// Runs the chosen child.
pub async fn run(balance: &Balance, call: &Call) -> Result<Reply> {
    let chosen = choose(balance, call).await;
    let node = call.ctx.health.node(balance.id);
    match &balance.policy {
        Policy::RoundRobin => _ = node.take_turn(),
        Policy::Sticky(sticky) => {
            if let Some(session) = session(sticky, call) {
                node.begin_session(session, chosen, sticky.ttl);
            }
        }
        Policy::Weighted | Policy::LeastBusy | Policy::LeastLatency | Policy::Cheapest => {}
    }
    Box::pin(super::run(&balance.children[chosen].plan, call)).await
}

/// The index of the child that takes this request. Choosing changes nothing: the same request, asked again
/// while nothing else happens, gets the same answer.
pub async fn choose(balance: &Balance, call: &Call) -> usize {
    let choice = Choice { balance, call };
    match &balance.policy {
        Policy::Weighted => choice.by_weight(),
        Policy::RoundRobin => choice.by_turn(),
        Policy::LeastBusy => choice.least_busy(),
        Policy::LeastLatency => choice.least_latency(),
        Policy::Sticky(sticky) => match session(sticky, call) {
            Some(session) => choice.by_session(session),
            None => choice.by_weight(),
        },
        Policy::Cheapest => choice.cheapest().await,
    }
}

/// What names the session: the values of the fields. None if the request has none of them.
fn session(sticky: &Sticky, call: &Call) -> Option<u64> {
    let facts = call.facts();
    let values: Vec<Option<String>> =
        sticky.fields.iter().map(|field| facts.get(field).map(|value| value.to_string())).collect();
    values.iter().any(Option::is_some).then(|| {
        let texts = values.iter().map(|value| value.as_deref().unwrap_or_default());
        Identity::of(texts).to_u64()
    })
}

struct Choice<'a> {
    balance: &'a Balance,
    call: &'a Call,
}

impl Choice<'_> {
    fn plan(&self, child: usize) -> &Plan {
        &self.balance.children[child].plan
    }

    fn weight(&self, child: usize) -> f64 {
        self.balance.children[child].weight
    }

    fn dice(&self, n: u64) -> f64 {
        self.call.ctx.dice(self.balance.id, n)
    }

    fn node(&self) -> std::sync::Arc<NodeHealth> {
        self.call.ctx.health.node(self.balance.id)
    }

    /// Children that may be chosen: those with a weight.
    fn eligible(&self) -> impl Iterator<Item = usize> {
        (0..self.balance.children.len()).filter(|child| self.weight(*child) > 0.0)
    }

    fn is_available(&self, child: usize) -> bool {
        standing::is_available(self.plan(child), self.call)
    }

    /// The eligible children that can take a request now; all of them if none can.
    fn available(&self) -> Vec<usize> {
        let available: Vec<usize> = self.eligible().filter(|child| self.is_available(*child)).collect();
        if available.is_empty() { self.eligible().collect() } else { available }
    }

    /// The weight, less for a target that comes back.
    fn warm_weight(&self, child: usize) -> f64 {
        self.weight(child) * self.warmth(child)
    }

    fn warmth(&self, child: usize) -> f64 {
        standing::lead(self.plan(child), self.call)
            .map_or(1.0, |target| standing::of(target, self.call).warmth)
    }

    /// One draw over all. Only if it falls on a child that should be left alone, or to a part, it is made again
    /// over those that should not: each gets the share it would have got in one draw over these, and the
    /// health of a hundred children is looked up when there is a reason.
    fn by_weight(&self) -> usize {
        let all: Vec<(usize, f64)> = self.eligible().map(|child| (child, self.weight(child))).collect();
        let drawn = draw(&all, self.dice(FIRST_DRAW));
        if self.is_available(drawn) && self.dice(ACCEPTS) < self.warmth(drawn) {
            return drawn;
        }
        let rest: Vec<(usize, f64)> =
            self.available().into_iter().map(|child| (child, self.warm_weight(child))).collect();
        draw(&rest, self.dice(REDRAW))
    }

    fn by_turn(&self) -> usize {
        let children: Vec<usize> = self.eligible().collect();
        let turn = self.node().turn() % children.len();
        let in_turn = || children[turn..].iter().chain(&children[..turn]).copied();
        in_turn().find(|child| self.is_available(*child)).unwrap_or(children[turn])
    }

    fn least_busy(&self) -> usize {
        let available = self.available();
        // Among equals by chance, or else the first would get everything while there is little to do.
        let start = (self.dice(FIRST_DRAW) * available.len() as f64) as usize;
        let from_start = available[start..].iter().chain(&available[..start]).copied();
        lowest(from_start, |child| {
            let busy = self.lead_standing(child).map_or(0, |standing| standing.in_flight);
            f64::from(busy) / self.warm_weight(child)
        })
    }

    /// The better of two by chance: nearly as good as the best of all, and callers that see the same figures
    /// do not all run to the same target.
    fn least_latency(&self) -> usize {
        let available = self.available();
        let first = (self.dice(FIRST_DRAW) * available.len() as f64) as usize;
        let others = available.len() - 1;
        if others == 0 {
            return available[0];
        }
        let second = (first + 1 + (self.dice(SECOND_DRAW) * others as f64) as usize) % available.len();
        lowest([available[first], available[second]].into_iter(), |child| {
            let Some(standing) = self.lead_standing(child) else { return 0.0 };
            // A target nobody has called yet is tried, by one request at a time; so is one that may be back.
            let known = standing.faded_seconds.filter(|_| standing.breaker == "closed");
            let seconds = known.unwrap_or(if standing.in_flight == 0 { 0.0 } else { f64::MAX });
            seconds * f64::from(standing.in_flight + 1) / self.warm_weight(child)
        })
    }

    fn lead_standing(&self, child: usize) -> Option<crate::health::Standing> {
        standing::lead(self.plan(child), self.call).map(|target| standing::of(target, self.call))
    }

    /// The session's target while that can take it, else one by the session's own dice (weighted rendezvous):
    /// routers that do not know of each other choose the same.
    fn by_session(&self, session: u64) -> usize {
        let known = self.node().session(session);
        if let Some(child) = known
            .filter(|child| self.eligible().any(|eligible| eligible == *child) && self.is_available(*child))
        {
            return child;
        }
        lowest(self.available().into_iter(), |child| {
            let place = Identity::of([self.balance.id.to_u64().to_string().as_str()])
                .with(&format!("{session} {child}"));
            let dice = (place.to_u64() >> 11) as f64 / (1_u64 << 53) as f64;
            -dice.max(f64::MIN_POSITIVE).ln() / self.warm_weight(child)
        })
    }

    /// By list prices for this very request; an unknown price is the highest.
    async fn cheapest(&self) -> usize {
        let mut best = (f64::INFINITY, None);
        let available = self.available();
        for child in &available {
            let Some(target) = standing::lead(self.plan(*child), self.call) else { continue };
            let price = match prepare::ready(target, self.call).await {
                Ok(ready) => ready.price().unwrap_or(f64::MAX),
                // It cannot serve the request at any price.
                Err(_) => continue,
            };
            if price < best.0 {
                best = (price, Some(*child));
            }
        }
        best.1.unwrap_or(available[0])
    }
}

/// The child on which a number of 0 to 1 falls.
fn draw(children: &[(usize, f64)], dice: f64) -> usize {
    let total: f64 = children.iter().map(|(_, weight)| weight).sum();
    let mut left = dice * total;
    for (child, weight) in children {
        if left < *weight {
            return *child;
        }
        left -= weight;
    }
    // Rounding may leave a hair's breadth beyond the last.
    children.last().map_or(0, |(child, _)| *child)
}

/// The first of the children with the lowest score.
fn lowest(children: impl Iterator<Item = usize>, score: impl Fn(usize) -> f64) -> usize {
    children
        .map(|child| (score(child), child))
        .reduce(|a, b| if b.0 < a.0 { b } else { a })
        .map_or(0, |(_, child)| child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_falls_on_children_in_proportion_to_their_weights() {
        let children = [(3, 1.0), (5, 0.0), (7, 3.0)];
        let drawn: Vec<usize> = (0..8).map(|i| draw(&children, f64::from(i) / 8.0)).collect();
        assert_eq!(drawn, [3, 3, 7, 7, 7, 7, 7, 7]);
        assert_eq!(draw(&children, 1.0), 7);
    }
}
