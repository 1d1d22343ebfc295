//! One target out of several: by weight, turn, load, latency, session or price.
//!
//! A target that should be left alone is not chosen as long as another can be, nor one that cannot serve the
//! request. What is chosen is final once it is called: if it fails, its error is the answer, as in the reference.
//! Put a balance inside a fallback for more.

use super::{prepare, standing};
use crate::{
    call::{Call, Reply},
    config::{
        identity::Identity,
        plan::{Balance, Plan},
        strategy::{OnUnsupported, Policy, Sticky},
    },
    error::{Error, ErrorKind, Result},
    health::NodeHealth,
};

/// Which throw of the dice decides what.
const FIRST_DRAW: u64 = 1;
const SECOND_DRAW: u64 = 2;
const ACCEPTS: u64 = 3;
const REDRAW: u64 = 4;

/// Runs the chosen child. One that turns out unable to serve the request is no choice, and another is made.
pub async fn run(balance: &Balance, call: &Call) -> Result<Reply> {
    let calls_before = call.ctx.record.calls();
    let mut excluded = Vec::new();
    loop {
        let chosen = choose(balance, call, &excluded).await;
        if excluded.is_empty() {
            remember(balance, call, chosen);
        }
        let plan = &balance.children[chosen].plan;
        let outcome = Box::pin(super::run(plan, &of_chosen(plan, call))).await;
        let nobody_called = call.ctx.record.calls() == calls_before;
        match outcome {
            Err(error) if nobody_called && may_choose_again(balance, &error, excluded.len()) => {
                excluded.push(chosen);
            }
            outcome => return outcome,
        }
    }
}

/// Whether this failure, of a child that called nobody, lets another child be chosen.
pub fn may_choose_again(balance: &Balance, error: &Error, excluded: usize) -> bool {
    error.kind == ErrorKind::Unsupported
        && balance.on_unsupported == OnUnsupported::Skip
        && excluded + 1 < balance.children.iter().filter(|child| child.weight > 0.0).count()
}

/// The call of a child that was chosen.
pub fn of_chosen(plan: &Plan, call: &Call) -> Call {
    Call { is_chosen: matches!(plan, Plan::Target(_)), ..call.clone() }
}

/// Takes note that a request ran there: whose turn is next, and where its session is.
pub fn remember(balance: &Balance, call: &Call, chosen: usize) {
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
}

/// The index of the child that takes this request, of those that are not excluded and have a weight. Choosing
/// changes nothing: the same request, asked again while nothing else happens, gets the same answer.
pub async fn choose(balance: &Balance, call: &Call, excluded: &[usize]) -> usize {
    let choice = Choice { balance, call, excluded };
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
    excluded: &'a [usize],
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
    fn eligible(&self) -> impl Iterator<Item = usize> + Clone {
        (0..self.balance.children.len())
            .filter(|child| self.weight(*child) > 0.0 && !self.excluded.contains(child))
    }

    fn is_available(&self, child: usize) -> bool {
        standing::is_available(self.plan(child), self.call)
    }

    /// How a child stands, judged by the target it would call first.
    fn look(&self, child: usize) -> Candidate {
        let target = standing::lead(self.plan(child), self.call);
        let standing = target.map(|target| standing::of(target, self.call));
        Candidate {
            child,
            weight: self.weight(child) * standing.map_or(1.0, |standing| standing.warmth),
            // If even the one it would call first is left alone, so are the others.
            available: standing.is_some_and(|standing| standing.ejected.is_none()),
            seconds: standing
                .filter(|standing| standing.breaker == "closed")
                .and_then(|standing| standing.faded_seconds),
            in_flight: standing.map_or(0, |standing| standing.in_flight),
        }
    }

    /// The eligible children that can take a request now; all of them if none can.
    fn candidates(&self) -> Vec<Candidate> {
        let all: Vec<Candidate> = self.eligible().map(|child| self.look(child)).collect();
        let available: Vec<Candidate> = all.iter().filter(|candidate| candidate.available).copied().collect();
        if available.is_empty() { all } else { available }
    }

    /// One draw over all. Only if it falls on a child that should be left alone, or to a part, it is made again
    /// over those that should not: each gets the share it would have got in one draw over these, and the
    /// health of a hundred children is looked up when there is a reason.
    fn by_weight(&self) -> usize {
        let all = self.eligible().map(|child| (child, self.weight(child)));
        let drawn = self.look(draw(all, self.dice(FIRST_DRAW)));
        if drawn.available && self.dice(ACCEPTS) * self.weight(drawn.child) < drawn.weight {
            return drawn.child;
        }
        let rest = self.candidates();
        draw(rest.iter().map(|candidate| (candidate.child, candidate.weight)), self.dice(REDRAW))
    }

    fn by_turn(&self) -> usize {
        let children: Vec<usize> = self.eligible().collect();
        let all = self.balance.children.iter().filter(|child| child.weight > 0.0).count();
        let turn = (self.node().turn() % all).min(children.len() - 1);
        let in_turn = || children[turn..].iter().chain(&children[..turn]).copied();
        in_turn().find(|child| self.is_available(*child)).unwrap_or(children[turn])
    }

    fn least_busy(&self) -> usize {
        let candidates = self.candidates();
        // Among equals by chance, or else the first would get everything while there is little to do.
        let start = (self.dice(FIRST_DRAW) * candidates.len() as f64) as usize;
        let from_start = candidates[start..].iter().chain(&candidates[..start]);
        lowest(from_start, |candidate| f64::from(candidate.in_flight) / candidate.weight)
    }

    /// The better of two by chance: nearly as good as the best of all, and callers that see the same figures
    /// do not all run to the same target.
    fn least_latency(&self) -> usize {
        let eligible: Vec<usize> = self.eligible().collect();
        let pair = self.two_of(&eligible).map(|child| self.look(child));
        let mut candidates = Vec::from(pair);
        if pair.iter().any(|candidate| !candidate.available) {
            candidates = self.candidates();
            candidates = self.two_of(&candidates).into();
        }
        lowest(candidates.iter(), |candidate| {
            // A target nobody has called yet is tried, by one request at a time; so is one that may be back.
            let unknown = if candidate.in_flight == 0 { 0.0 } else { f64::MAX };
            let seconds = candidate.seconds.unwrap_or(unknown);
            seconds * f64::from(candidate.in_flight + 1) / candidate.weight
        })
    }

    /// Two by chance; the same one twice if there is no other.
    fn two_of<T: Copy>(&self, all: &[T]) -> [T; 2] {
        let first = (self.dice(FIRST_DRAW) * all.len() as f64) as usize;
        let others = all.len().saturating_sub(1);
        let distance = if others == 0 { 0 } else { 1 + (self.dice(SECOND_DRAW) * others as f64) as usize };
        [all[first], all[(first + distance) % all.len()]]
    }

    /// The session's target while that can take it, else one by the session's own dice (weighted rendezvous):
    /// routers that do not know of each other choose the same.
    fn by_session(&self, session: u64) -> usize {
        let known = self.node().session(session);
        let known = known.filter(|known| self.eligible().any(|child| child == *known));
        if let Some(child) = known.filter(|child| self.is_available(*child)) {
            return child;
        }
        let place = self.balance.id.with(&session.to_string());
        lowest(self.candidates().iter(), |candidate| {
            let dice = place.with(&candidate.child.to_string()).to_u64() >> 11;
            let dice = dice as f64 / (1_u64 << 53) as f64;
            -dice.max(f64::MIN_POSITIVE).ln() / candidate.weight
        })
    }

    /// By list prices for this very request; an unknown price is the highest.
    async fn cheapest(&self) -> usize {
        let candidates = self.candidates();
        let mut best = (f64::INFINITY, candidates[0].child);
        for candidate in candidates {
            let Some(target) = standing::lead(self.plan(candidate.child), self.call) else { continue };
            // One that cannot serve the request is no choice at any price.
            let Ok(ready) = prepare::ready(target, self.call).await else { continue };
            let price = ready.price().unwrap_or(f64::MAX);
            if price < best.0 {
                best = (price, candidate.child);
            }
        }
        best.1
    }
}

/// A child that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    child: usize,
    /// Its weight, less for a target that comes back.
    weight: f64,
    available: bool,
    seconds: Option<f64>,
    in_flight: u32,
}

/// The child on which a number of 0 to 1 falls.
fn draw(children: impl Iterator<Item = (usize, f64)> + Clone, dice: f64) -> usize {
    let total: f64 = children.clone().map(|(_, weight)| weight).sum();
    let mut left = dice * total;
    let mut last = 0;
    for (child, weight) in children {
        if left < weight {
            return child;
        }
        left -= weight;
        last = child;
    }
    // Rounding may leave a hair's breadth beyond the last.
    last
}

/// The first of the candidates with the lowest score.
fn lowest<'a>(candidates: impl Iterator<Item = &'a Candidate>, score: impl Fn(&Candidate) -> f64) -> usize {
    let scored = candidates.map(|candidate| (score(candidate), candidate.child));
    scored.reduce(|best, next| if next.0 < best.0 { next } else { best }).map_or(0, |(_, child)| child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_falls_on_children_in_proportion_to_their_weights() {
        let children = [(3, 1.0), (5, 0.0), (7, 3.0)];
        let drawn: Vec<usize> = (0..8).map(|i| draw(children.into_iter(), f64::from(i) / 8.0)).collect();
        assert_eq!(drawn, [3, 3, 7, 7, 7, 7, 7, 7]);
        assert_eq!(draw(children.into_iter(), 1.0), 7);
    }
}
