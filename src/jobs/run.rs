//! Carries out one job, and keeps what comes of it.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures::FutureExt as _;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    Made, Running, Said, Shared,
    job::{end, fail, state_name, to_json},
    store::TOUCH_EVERY,
    webhook::Webhook,
};
use crate::{
    error::{Error, ErrorKind, Result},
    pb::{Job, job::State, stream_image_response::Event},
    telemetry,
};

impl Shared {
    pub(super) async fn carry_out(
        self: Arc<Self>,
        running: Arc<Running>,
        mut progress: mpsc::Receiver<Box<Said>>,
        run: impl Future<Output = Result<Made>> + Send,
        webhook: Option<Webhook>,
    ) {
        let job = running.now.borrow().clone();
        self.keep(&job, None).await;
        let id = job.id;
        let outcome = {
            let mut run = pin!(AssertUnwindSafe(run).catch_unwind());
            let mut touches = interval_at(Instant::now() + TOUCH_EVERY, TOUCH_EVERY);
            touches.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    outcome = &mut run => break Some(outcome),
                    () = running.given_up.cancelled() => break None,
                    Some(event) = progress.recv() => {
                        if let Ok(Event::Progress(progress)) = *event {
                            running.now.send_modify(|job| job.progress = Some(progress));
                        }
                    }
                    _ = touches.tick() => self.store.touch(&id).await,
                }
            }
        };
        let mut job = running.now.borrow().clone();
        let made = match outcome {
            Some(Ok(Ok(made))) => {
                end(&mut job, State::Succeeded);
                Some(made)
            }
            Some(Ok(Err(error))) => {
                fail(&mut job, &error);
                None
            }
            Some(Err(_)) => {
                fail(&mut job, &Error::new(ErrorKind::Internal, "the job broke down"));
                None
            }
            None => {
                end(&mut job, State::Cancelled);
                None
            }
        };
        telemetry::job_ends(state_name(job.state()));
        let is_kept = self.keep(&job, made.as_ref()).await;
        if let (Some(made), false) = (made, is_kept) {
            _ = running.made.set(made);
        }
        running.now.send_replace(job.clone());
        if is_kept {
            self.running().remove(&id);
        }
        if let Some(webhook) = webhook {
            webhook
                .tell(&self.draining, &format!("image.job.{}", state_name(job.state())), to_json(&job))
                .await;
        }
    }

    /// Whether it worked. Without a disk a job lives as long as its process.
    pub(super) async fn keep(&self, job: &Job, made: Option<&Made>) -> bool {
        let kept = async {
            if let Some(made) = made {
                self.store.put_images(&job.id, &made.images).await?;
            }
            self.store.put(job, made.map(|made| &made.result)).await
        };
        match kept.await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, job = job.id, "a job cannot be stored, and is lost if the process ends");
                false
            }
        }
    }
}
