//! What is checked: the ids that programs know a check by, and what each promises.

/// One promise of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Health service.
    Health,
    /// Describe answers.
    Describe,
    /// Describe makes sense.
    Record,
    /// A call with nothing special succeeds.
    Call,
    /// Declared sizes.
    Size,
    /// Declared and requested counts.
    Count,
    /// Declared formats.
    Format,
    /// The longest prompt.
    Prompt,
    /// Declared parameters.
    Parameters,
    /// Inputs and masks.
    Inputs,
    /// Progress and previews.
    Progress,
    /// The last event.
    Done,
    /// Chunks of images.
    Chunks,
    /// The images themselves.
    Images,
    /// What was counted.
    Usage,
    /// What was charged.
    Cost,
    /// Calls side by side.
    Concurrency,
    /// A model that does not exist.
    UnknownModel,
    /// A provider that does not exist.
    UnknownProvider,
    /// A wrong credential.
    BadCredential,
    /// Details of failures.
    ErrorDetails,
    /// Refused content.
    Refusal,
    /// Rate limits.
    RateLimit,
    /// 64 MB.
    LargeImage,
    /// Deadlines.
    Deadline,
    /// Cancelled calls.
    Cancellation,
}

impl Check {
    /// In the order of a report.
    pub const ALL: [Self; 26] = [
        Self::Health,
        Self::Describe,
        Self::Record,
        Self::Call,
        Self::Size,
        Self::Count,
        Self::Format,
        Self::Prompt,
        Self::Parameters,
        Self::Inputs,
        Self::Progress,
        Self::Done,
        Self::Chunks,
        Self::Images,
        Self::Usage,
        Self::Cost,
        Self::Concurrency,
        Self::UnknownModel,
        Self::UnknownProvider,
        Self::BadCredential,
        Self::ErrorDetails,
        Self::Refusal,
        Self::RateLimit,
        Self::LargeImage,
        Self::Deadline,
        Self::Cancellation,
    ];

    /// Those that cannot be seen without a call that succeeds.
    pub const OF_CALLS: [Self; 16] = [
        Self::Call,
        Self::Size,
        Self::Count,
        Self::Format,
        Self::Progress,
        Self::Done,
        Self::Chunks,
        Self::Images,
        Self::Usage,
        Self::Cost,
        Self::Concurrency,
        Self::Refusal,
        Self::RateLimit,
        Self::LargeImage,
        Self::Deadline,
        Self::Cancellation,
    ];

    /// Those that every answer passes or fails.
    pub const OF_ANSWERS: [Self; 7] =
        [Self::Count, Self::Progress, Self::Done, Self::Chunks, Self::Images, Self::Usage, Self::Cost];

    /// As reports spell it. Stable.
    pub fn id(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Describe => "describe",
            Self::Record => "record",
            Self::Call => "call",
            Self::Size => "size",
            Self::Count => "count",
            Self::Format => "format",
            Self::Prompt => "prompt",
            Self::Parameters => "parameters",
            Self::Inputs => "inputs",
            Self::Progress => "progress",
            Self::Done => "done",
            Self::Chunks => "chunks",
            Self::Images => "images",
            Self::Usage => "usage",
            Self::Cost => "cost",
            Self::Concurrency => "concurrency",
            Self::UnknownModel => "unknown-model",
            Self::UnknownProvider => "unknown-provider",
            Self::BadCredential => "bad-credential",
            Self::ErrorDetails => "error-details",
            Self::Refusal => "refusal",
            Self::RateLimit => "rate-limit",
            Self::LargeImage => "large-image",
            Self::Deadline => "deadline",
            Self::Cancellation => "cancellation",
        }
    }

    /// What is promised.
    pub fn promise(self) -> &'static str {
        match self {
            Self::Health => "the health service says SERVING for \"\" and for imagegate.v1.WorkerService",
            Self::Describe => "Describe answers within 2 s, and the same each time",
            Self::Record => {
                "names, models, sizes, limits, formats, prices and dates of the record make sense"
            }
            Self::Call => "an ordinary call to a declared model succeeds",
            Self::Size => "declared sizes are made exactly",
            Self::Count => "an answer has exactly the images that were asked for, up to max_n, none withheld",
            Self::Format => "declared formats are made, the first of them unasked",
            Self::Prompt => "a prompt of max_prompt_chars characters is accepted",
            Self::Parameters => "declared parameters are accepted at their limits and with each listed value",
            Self::Inputs => "declared edits take max_inputs inputs, and a mask where they inpaint",
            Self::Progress => {
                "progress is 0 to 1; previews are images, and come only where they were asked for"
            }
            Self::Done => "`done` is the last event, comes once, and carries no image data",
            Self::Chunks => "chunks come image by image, of at most 256 KiB, for images that were asked for",
            Self::Images => "each image is whole, and `done` says truly what it is",
            Self::Usage => "usage is not negative, and counts what the record has a price for",
            Self::Cost => "the reported cost is a number and not negative",
            Self::Concurrency => "of 16 calls at once each gets its own answer",
            Self::UnknownModel => "a model that nobody knows is NOT_FOUND (or INVALID_ARGUMENT)",
            Self::UnknownProvider => {
                "a provider that the worker does not serve is UNIMPLEMENTED, NOT_FOUND or INVALID_ARGUMENT"
            }
            Self::BadCredential => "a wrong or missing credential is UNAUTHENTICATED or PERMISSION_DENIED",
            Self::ErrorDetails => "details of a failure can be read, and agree with its status",
            Self::Refusal => "refused content is FAILED_PRECONDITION, never a success",
            Self::RateLimit => "a rate limit is RESOURCE_EXHAUSTED and says when to come back",
            Self::LargeImage => "an image of 64 MB is delivered",
            Self::Deadline => {
                "a call that outlasts its deadline ends with DEADLINE_EXCEEDED within 1 s, and so does the work"
            }
            Self::Cancellation => "cancelled calls end, and hold up nobody for more than 1 s",
        }
    }
}
