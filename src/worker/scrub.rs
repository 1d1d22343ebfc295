//! Takes credentials out of what a provider says: some quote the key that they refuse, and errors are shown and logged.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};

use crate::{error::Error, provider::Job};

/// What stands for a credential in a message.
const HIDDEN: &str = "[credential]";

/// Shorter ones are words that messages may contain anyway.
const SHORTEST: usize = 8;

/// Parts of the names of settings and headers that hold credentials, in lower case.
const NAMES: &[&str] = &["key", "secret", "token", "password", "auth", "cookie", "account_json"];

/// The credentials of one job.
pub struct Credentials(Vec<SecretString>);

impl Credentials {
    /// Everything that the job is called with, and the caller's own among the headers that it forwards.
    pub fn of(job: &Job, headers: &BTreeMap<String, String>) -> Self {
        let named = job.options.iter().chain(headers).filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            NAMES.iter().any(|part| name.contains(part))
        });
        let mut all = Self(Vec::new());
        for value in named.map(|(_, value)| value) {
            all.add(value);
            // As in `Bearer ...`.
            all.add(value.rsplit(' ').next().unwrap_or_default());
        }
        if let Some(key) = &job.api_key {
            all.add(key.expose_secret());
        }
        all
    }

    /// One more, that a login led to.
    pub fn add(&mut self, credential: &str) {
        if credential.len() >= SHORTEST {
            self.0.push(credential.into());
        }
    }

    /// The error without them.
    pub fn hidden_in(&self, mut error: Error) -> Error {
        for credential in &self.0 {
            let hide = |text: &mut String| {
                if text.contains(credential.expose_secret()) {
                    *text = text.replace(credential.expose_secret(), HIDDEN);
                }
            };
            hide(&mut error.message);
            error.code.iter_mut().for_each(hide);
            error.error_type.iter_mut().for_each(hide);
            error.param.iter_mut().for_each(hide);
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::ErrorKind, pb};

    #[test]
    fn what_a_provider_quotes_is_not_shown() {
        let mut job = Job::new(pb::ImageRequest::default(), "http://x");
        job.api_key = Some("sk-live-12345".into());
        job.options.insert("aws_secret_access_key".into(), "aws/secret+1".into());
        job.options.insert("aws_region".into(), "us-east-1".into());
        let headers = BTreeMap::from([("authorization".to_owned(), "Bearer forwarded-1".to_owned())]);
        let mut credentials = Credentials::of(&job, &headers);
        credentials.add("oauth-token-1");
        let said = "sk-live-12345 is wrong in us-east-1, aws/secret+1 and forwarded-1 and oauth-token-1, too";
        let error = Error::new(ErrorKind::PermissionDenied, said).with_code("bad sk-live-12345");
        let error = credentials.hidden_in(error);
        let [one, two] = [
            "[credential] is wrong in us-east-1, [credential] and [credential] and [credential], too",
            "bad [credential]",
        ];
        assert_eq!((error.message.as_str(), error.code.as_deref()), (one, Some(two)));
    }
}
