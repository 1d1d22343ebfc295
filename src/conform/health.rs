//! The health service that Kubernetes and load balancers ask.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{asking::told, check::Check, report::Report};
use crate::pool::Pool;

/// As long as a probe of Kubernetes waits by default, and another second.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICES: [&str; 2] = ["", "imagegate.v1.WorkerService"];

/// Asks for the server as a whole and for its service.
pub async fn check(pool: &Pool, report: &mut Report) {
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(pool.clone());
        let answer = timeout(PATIENCE, client.check(request)).await;
        let result = match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(answer) => Err(format!("\"{service}\" is {}", answer.get_ref().status().as_str_name())),
            Err(status) => Err(format!("\"{service}\": {}", told(&status))),
        };
        report.hold(Check::Health, result);
    }
}
