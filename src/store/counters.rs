//! What has been used of limits, by all routers together.

use sqlx::{Row as _, any::AnyRow};

use super::{Store, within};
use crate::{error::Result, pb, quota::Kept};

/// How long a period is remembered that is over: clocks are set back at times.
const REMEMBERED_MS: i64 = 2 * 86_400_000;

impl Store {
    /// What has been used in the periods that are not over, or only just.
    ///
    /// # Errors
    /// The store is away.
    pub async fn counters(&self) -> Result<Vec<Kept>> {
        let query = sqlx::query("SELECT counter, start_ms, end_ms, amount FROM counters WHERE end_ms > $1");
        let read = |row: &AnyRow| {
            Ok(Kept {
                counter: row.try_get(0)?,
                start_ms: row.try_get(1)?,
                end_ms: row.try_get(2)?,
                amount: row.try_get(3)?,
            })
        };
        self.all(query.bind(pb::unix_now_ms() - REMEMBERED_MS), read).await
    }

    /// Adds to counters, all or none, and says what they stand at now.
    ///
    /// # Errors
    /// The store is away, and nothing was added as far as it said.
    pub async fn count(&self, used: &[Kept]) -> Result<Vec<i64>> {
        // Always in the same order: two routers that wait for each other's rows would wait for ever.
        let mut order: Vec<usize> = (0..used.len()).collect();
        order.sort_by_key(|i| (&used[*i].counter, used[*i].start_ms));
        within(async {
            let mut transaction = self.begin(&self.pool).await?;
            let mut totals = vec![0; used.len()];
            for i in order {
                let Kept { counter, start_ms, end_ms, amount } = &used[i];
                let row = sqlx::query(
                    "INSERT INTO counters VALUES ($1, $2, $3, $4) ON CONFLICT (counter, start_ms) \
                     DO UPDATE SET amount = counters.amount + excluded.amount RETURNING amount",
                )
                .bind(super::clean(counter))
                .bind(*start_ms)
                .bind(*end_ms)
                .bind(*amount)
                .fetch_one(&mut *transaction)
                .await?;
                totals[i] = row.try_get(0)?;
            }
            transaction.commit().await?;
            Ok(totals)
        })
        .await
    }

    /// Forgets periods that are long over.
    pub(super) async fn forget_counters(&self) -> Result<()> {
        let query = sqlx::query("DELETE FROM counters WHERE end_ms < $1");
        within(query.bind(pb::unix_now_ms() - REMEMBERED_MS).execute(&self.pool)).await.map(drop)
    }
}
