//! What prompts mean, as directions: the nearer two of them, the more alike the prompts.

use std::sync::Arc;

/// Directions are compared in this many sums side by side, which the processor adds at once.
const LANES: usize = 8;

/// Rounding of sums of a few thousand products.
const GRAIN: f64 = 1e-6;

/// Longer ones are no embeddings.
const MAX_DIMENSIONS: usize = 16_384;

/// The meaning of one prompt, as one model sees it.
pub struct Vector {
    model: Arc<str>,
    /// Of length 1.
    values: Box<[f32]>,
}

impl Vector {
    /// A vector of any length; none if it has no direction.
    pub fn try_new(model: Arc<str>, mut values: Vec<f32>) -> Option<Self> {
        let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if values.len() > MAX_DIMENSIONS || !length.is_normal() {
            return None;
        }
        for value in &mut values {
            *value = (f64::from(*value) / length) as f32;
        }
        Some(Self { model, values: values.into() })
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.values)
    }

    /// The cosine of the angle between them; none between different models, whose directions have nothing to
    /// do with each other.
    fn cosine(&self, other: &Self) -> Option<f64> {
        if self.model != other.model || self.values.len() != other.values.len() {
            return None;
        }
        let mut sums = [0.0_f32; LANES];
        for (mine, others) in self.values.chunks(LANES).zip(other.values.chunks(LANES)) {
            for (sum, (a, b)) in sums.iter_mut().zip(mine.iter().zip(others)) {
                *sum += a * b;
            }
        }
        Some(sums.iter().copied().map(f64::from).sum())
    }
}

/// The candidate that comes nearest to a prompt, if it is at least as near as `threshold`.
pub fn nearest<T>(
    prompt: &Vector,
    candidates: impl IntoIterator<Item = (T, Arc<Vector>)>,
    threshold: f64,
) -> Option<T> {
    let measured = candidates.into_iter().filter_map(|(id, vector)| Some((prompt.cosine(&vector)?, id)));
    let near = measured.filter(|(cosine, _)| cosine + GRAIN >= threshold);
    near.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, id)| id)
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values tell what the prompt was about.
        write!(f, "Vector({} x {})", self.model, self.values.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(values: &[f32]) -> Arc<Vector> {
        Arc::new(Vector::try_new("m".into(), values.to_vec()).unwrap())
    }

    #[test]
    fn the_nearest_wins_if_it_is_near_enough() {
        let prompt = vector(&[1.0, 0.0]);
        let candidates =
            [("far", vector(&[0.0, 1.0])), ("near", vector(&[2.0, 0.5])), ("so", vector(&[1.0, 1.0]))];
        let near = |threshold| nearest(&prompt, candidates.clone(), threshold);
        assert_eq!(near(0.5), Some("near"));
        assert_eq!(near(0.97), Some("near"));
        assert_eq!(near(0.98), None);
        assert_eq!(nearest::<()>(&prompt, [], 0.0), None);
    }

    #[test]
    fn the_same_direction_is_as_near_as_can_be_whatever_its_length() {
        let values: Vec<f32> = (0..1537).map(|i| (i as f32).sin()).collect();
        let longer: Vec<f32> = values.iter().map(|value| value * 7.0).collect();
        assert_eq!(nearest(&vector(&values), [((), vector(&longer))], 1.0), Some(()));
    }

    #[test]
    fn vectors_of_different_models_are_never_near() {
        let other = Arc::new(Vector::try_new("other".into(), vec![1.0, 0.0]).unwrap());
        let candidates = [((), other), ((), vector(&[1.0, 0.0, 0.0]))];
        assert_eq!(nearest(&vector(&[1.0, 0.0]), candidates, 0.0), None);
    }

    #[test]
    fn what_has_no_direction_is_no_vector() {
        for values in [vec![], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY], vec![1.0; 20_000]] {
            assert!(Vector::try_new("m".into(), values).is_none());
        }
    }
}
