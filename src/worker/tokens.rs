//! Tokens that providers gave for a while, so that not every job has to log in.

use std::{fmt, future::Future, sync::Arc};

use moka::sync::Cache;
use secrecy::SecretString;
use tokio::{sync::Mutex, time::Instant};

use crate::{error::Result, provider::Token};

/// Accounts whose tokens are kept; beyond, those that were not used for longest log in again.
const MAX_ACCOUNTS: u64 = 1024;

/// The share of a token's lifetime in which it is used: a request may be on its way for minutes.
const USED_FOR: f64 = 0.8;

/// Tokens by account.
pub struct Tokens(Cache<[u8; 32], Account>);

/// Whoever holds the lock logs in; the others wait for what comes of it.
type Account = Arc<Mutex<Option<Held>>>;

struct Held {
    secret: SecretString,
    until: Instant,
}

impl Tokens {
    /// The token of an account, got with `login` if there is none or if it will not be good for much longer.
    pub async fn get(
        &self,
        account: [u8; 32],
        login: impl Future<Output = Result<Token>>,
    ) -> Result<SecretString> {
        let held = self.0.get_with(account, Account::default);
        let mut held = held.lock().await;
        if let Some(Held { secret, until }) = &*held
            && Instant::now() < *until
        {
            return Ok(secret.clone());
        }
        let Token { secret, lifetime } = login.await?;
        *held = Some(Held { secret: secret.clone(), until: Instant::now() + lifetime.mul_f64(USED_FOR) });
        Ok(secret)
    }

    /// Has an account log in again: its token was refused.
    pub fn forget(&self, account: [u8; 32]) {
        self.0.invalidate(&account);
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self(Cache::new(MAX_ACCOUNTS))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::error::Error;

    async fn login(logins: &AtomicUsize) -> Result<Token> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let number = logins.fetch_add(1, Ordering::Relaxed);
        Ok(Token { secret: format!("t{number}").into(), lifetime: Duration::from_secs(100) })
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_of_an_account_share_a_token_until_it_is_nearly_over() {
        let (tokens, logins) = (Tokens::default(), AtomicUsize::new(0));
        let get = async |account: u8| {
            let token = tokens.get([account; 32], login(&logins)).await.unwrap();
            token.expose_secret().to_owned()
        };
        assert_eq!(tokio::join!(get(1), get(1)), ("t0".into(), "t0".into()));
        assert_eq!(get(2).await, "t1");
        tokio::time::advance(Duration::from_secs(75)).await;
        assert_eq!(get(1).await, "t0");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(get(1).await, "t2");
        tokens.forget([1; 32]);
        assert_eq!(get(1).await, "t3");
    }

    #[tokio::test]
    async fn a_login_that_failed_is_tried_again() {
        let tokens = Tokens::default();
        let failed = tokens.get([0; 32], async { Err(Error::bad_answer("no")) }).await;
        assert!(failed.is_err());
        let token = Token { secret: "t".into(), lifetime: Duration::from_secs(1) };
        assert!(tokens.get([0; 32], async { Ok(token) }).await.is_ok());
    }
}
