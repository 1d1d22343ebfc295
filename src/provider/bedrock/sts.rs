//! Becomes a role for an hour: STS's `AssumeRole`, signed with the keys that there are.

use std::time::Duration;

use http::{Request, StatusCode, header::CONTENT_TYPE};
use secrecy::ExposeSecret as _;
use url::form_urlencoded::Serializer;

use super::{
    NAME,
    sigv4::{Keys, Scope, signed},
};
use crate::{
    digest::Framed,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    provider::{Answer, AnswerBody, Job, Login, Token, finish},
};

/// How long the role's keys are good for. More is not given to whoever is a role already.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Who becomes which role.
pub(super) struct AssumedRole {
    pub(super) keys: Keys,
    pub(super) region: String,
    pub(super) role_arn: String,
    /// What the role's owner may want to be told.
    pub(super) external_id: Option<String>,
}

impl Login for AssumedRole {
    fn account(&self) -> [u8; 32] {
        let session = self.keys.session.as_ref().map_or("", |session| session.expose_secret());
        let external_id = self.external_id.as_deref().unwrap_or_default();
        [&self.keys.id, self.keys.secret.expose_secret(), session, &self.region, &self.role_arn, external_id]
            .into_iter()
            .collect::<Framed>()
            .finish()
    }

    fn request(&self, job: &Job) -> Result<Request<Pieces>> {
        let mut form = Serializer::new(String::new());
        form.append_pair("Action", "AssumeRole")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &self.role_arn)
            .append_pair("RoleSessionName", "imagegate")
            .append_pair("DurationSeconds", &LIFETIME.as_secs().to_string());
        if let Some(external_id) = &self.external_id {
            form.append_pair("ExternalId", external_id);
        }
        let request = Request::post(format!("https://sts.{}.amazonaws.com/", self.region))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = finish(request, form.finish().into_bytes().into())?;
        signed(request, &self.keys, &Scope { region: &self.region, service: "sts", now: job.now })
    }

    fn token(&self, answer: Answer) -> Result<Token> {
        let text = match &answer.body {
            AnswerBody::Raw(body) => std::str::from_utf8(body).unwrap_or_default(),
            AnswerBody::Json { .. } => "",
        };
        if !answer.status.is_success() {
            return Err(failure(&answer, text));
        }
        let part = |name| element(text, name);
        let (Some(id), Some(secret), Some(session)) =
            (part("AccessKeyId"), part("SecretAccessKey"), part("SessionToken"))
        else {
            return Err(answer.own(NAME, Error::bad_answer("the answer to AssumeRole has no keys")));
        };
        Ok(Token { secret: format!("{id}\n{secret}\n{session}").into(), lifetime: LIFETIME })
    }
}

/// The keys in a token of ours.
pub(super) fn keys(token: &str) -> Option<Keys> {
    let mut parts = token.split('\n');
    let (id, secret, session) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Keys { id: id.to_owned(), secret: secret.into(), session: Some(session.into()) })
}

/// The text of an element that occurs once, and that never holds others or needs escapes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty() && !text.contains(['<', '&', '\n']))
}

fn failure(answer: &Answer, text: &str) -> Error {
    let said = element(text, "Code").unwrap_or("no reason");
    let mut error = answer.default_error(NAME, format!("{NAME} error: the role was not given: {said}"));
    // Its own words for a wrong key come with 400 too.
    if answer.status == StatusCode::BAD_REQUEST {
        error.kind = ErrorKind::PermissionDenied;
    }
    if said.contains("Throttling") {
        error.kind = ErrorKind::RateLimited;
    }
    error.error_type = element(text, "Code").map(str::to_owned);
    error
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::pb;

    const ANSWER: &str = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
        <AssumeRoleResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>\
        <SecretAccessKey>se/cr+et</SecretAccessKey><SessionToken>to/ken==</SessionToken>\
        <Expiration>2026-11-22T13:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>";

    fn role(external_id: Option<&str>) -> AssumedRole {
        AssumedRole {
            keys: Keys { id: "AKID".into(), secret: "secret".into(), session: None },
            region: "eu-west-1".into(),
            role_arn: "arn:aws:iam::123456789012:role/art".into(),
            external_id: external_id.map(str::to_owned),
        }
    }

    fn answer(status: u16, text: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: AnswerBody::Raw(text.into()),
            address: String::new(),
            note: String::new(),
        }
    }

    #[test]
    fn a_role_is_asked_for_in_its_region_with_a_signature() {
        let job = Job::new(pb::ImageRequest::default(), "");
        let request = role(Some("a b")).request(&job).unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::POST, "https://sts.eu-west-1.amazonaws.com/")
        );
        let authorization = request.headers()["authorization"].to_str().unwrap();
        assert!(authorization.contains("/eu-west-1/sts/aws4_request"), "{authorization}");
        assert_eq!(
            request.into_body().into_bytes(),
            "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fart\
             &RoleSessionName=imagegate&DurationSeconds=3600&ExternalId=a+b"
        );
    }

    #[test]
    fn the_roles_keys_come_back_from_a_token() {
        let token = role(None).token(answer(200, ANSWER)).unwrap();
        let keys = keys(token.secret.expose_secret()).unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.expose_secret()), ("ASIAROLE", "se/cr+et"));
        assert_eq!(keys.session.unwrap().expose_secret(), "to/ken==");
    }

    #[test]
    fn whoever_may_not_be_a_role_is_told() {
        let denied = "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>";
        let error = role(None).token(answer(403, denied)).unwrap_err();
        assert_eq!(
            (error.kind, error.error_type.as_deref()),
            (ErrorKind::PermissionDenied, Some("AccessDenied"))
        );
        let empty = role(None).token(answer(200, "<AssumeRoleResponse/>")).unwrap_err();
        assert_eq!(empty.kind, ErrorKind::BadAnswer);
    }

    #[test]
    fn every_part_of_who_asks_for_what_makes_an_account() {
        assert_eq!(role(None).account(), role(None).account());
        assert_ne!(role(None).account(), role(Some("x")).account());
        let other = AssumedRole { region: "us-east-1".into(), ..role(None) };
        assert_ne!(role(None).account(), other.account());
    }
}
