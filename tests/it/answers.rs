//! What a caller gets: images, formats, sizes, and the report of what happened.

use std::sync::Arc;

use bytes::Bytes;
use imagegate::{
    error::{Error, ErrorKind},
    images::probe,
    pb::{
        self, BillingClass, CostSource, FinishReason, ImageFormat, SizePolicy, input_image::Source,
        stream_image_response::Event,
    },
    transport,
    worker::remote::Served,
};
use serde_json::json;
use tonic::Request;

use crate::support::{
    Gateway, Mode, Outcome, Worker, ask, both_ways, fallback, large_png, message, model, png, report, target,
    warnings, with,
};

fn decoded(image: &pb::Image) -> image::DynamicImage {
    image::load_from_memory(&image.data).unwrap()
}

#[tokio::test]
async fn untouched_images_keep_their_bytes() {
    both_ways(async |mode| {
        // Longer than one message between processes.
        let original = large_png(500);
        assert!(original.len() > 2 * pb::CHUNK_BYTES);
        let worker = Worker::paint().script("a", [Outcome::Images(vec![original.clone()])]);
        let result = Gateway::over(mode, &worker, &target("a")).generate(&json!({})).await.unwrap();
        let image = &result.images[0];
        assert!(image.data == original);
        assert_eq!((image.format(), image.width, image.height), (ImageFormat::Png, 500, 500));
        assert_eq!(image.finish_reason(), FinishReason::Stop);
        assert_eq!((image.seed, image.revised_prompt.as_str()), (Some(0), "a better cat"));
        if mode == Mode::OneProcess {
            assert_eq!(image.data.as_ptr(), original.as_ptr(), "the image was copied");
        }
    })
    .await;
}

#[tokio::test]
async fn images_are_told_apart_after_their_chunks_came() {
    both_ways(async |mode| {
        let [grid, a, b, bad] = [png(64, 64, 1), png(16, 16, 2), png(16, 16, 3), Bytes::from_static(b"no")];
        let made = vec![grid, a.clone(), bad, b.clone()];
        let config = fallback(&["a", "b"]);
        let ask = async |chunks: &[u32]| {
            let outcome = Outcome::ChunksFirst(made.clone(), chunks.to_vec());
            let worker = Worker::paint().script("a", [outcome]);
            let result = Gateway::over(mode, &worker, &config).generate(&json!({"n": 2})).await.unwrap();
            let data = result.images.iter().map(|image| image.data.clone());
            (report(&result).model.clone(), data.collect::<Vec<_>>())
        };
        assert_eq!(ask(&[1, 3]).await, ("a".to_owned(), vec![a.clone(), b.clone()]));
        assert_eq!(ask(&[3, 1]).await, ("a".to_owned(), vec![b, a]));
        // One that is no image, one that is nobody's, one that is twice somebody's.
        for chunks in [[2, 1], [1, 4], [1, 1]] {
            assert_eq!(ask(&chunks).await.0, "b", "{chunks:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_streamed_image_arrives_in_bounded_pieces_with_the_same_bytes() {
    both_ways(async |mode| {
        let original = large_png(500);
        let worker = Worker::paint().script("a", [Outcome::Images(vec![original.clone(), png(9, 9, 1)])]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let (events, end) = gateway.stream(&json!({"n": 2})).await;
        end.unwrap();
        let mut images = [Vec::new(), Vec::new()];
        let mut result = None;
        for event in events {
            match event {
                Event::ImageChunk(chunk) => {
                    assert!(mode == Mode::OneProcess || chunk.data.len() <= pb::CHUNK_BYTES);
                    images[chunk.image_index as usize].extend_from_slice(&chunk.data);
                }
                Event::Result(last) => result = Some(last),
                other => panic!("{other:?}"),
            }
        }
        assert!(images[0] == original && images[1] == png(9, 9, 1));
        let result = result.unwrap();
        assert_eq!(result.images.iter().map(|image| image.width).collect::<Vec<_>>(), [500, 9]);
        assert!(result.images.iter().all(|image| image.data.is_empty()));
    })
    .await;
}

/// The settings of real connections hold where the other tests' pipe does not use them.
#[tokio::test]
async fn a_large_image_passes_a_real_socket() {
    let original = large_png(1400);
    assert!(original.len() > 5 << 20, "larger than tonic's default limit");
    let worker = Worker::paint().script("a", [Outcome::Images(vec![original.clone()])]);
    let served = transport::worker_server(Served(Arc::clone(&worker) as _));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(transport::server().add_service(served).serve_with_incoming(incoming));
    // The router only knows the address: the provider's name is not one of its own.
    let yaml = format!("workers: {{paint: '{uri}'}}\nconfigs: {{it: {}}}\ndefault_config: it\n", target("a"));
    let gateway = Gateway::new(Mode::Connected, &yaml, &[]);
    let result = gateway.generate(&json!({})).await.unwrap();
    assert!(result.images[0].data == original);
}

#[tokio::test]
async fn an_image_is_converted_to_the_format_asked_for() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        for (name, format, decoder) in [
            ("jpeg", ImageFormat::Jpeg, image::ImageFormat::Jpeg),
            ("webp", ImageFormat::Webp, image::ImageFormat::WebP),
        ] {
            let result = gateway.generate(&json!({"output_format": name, "size": "64x48"})).await.unwrap();
            let image = &result.images[0];
            assert_eq!(image.format(), format);
            assert_eq!(probe::sniff(&image.data), Some(format));
            assert_eq!((image.width, image.height), (64, 48));
            let picture = image::load_from_memory_with_format(&image.data, decoder).unwrap();
            assert_eq!((picture.width(), picture.height()), (64, 48));
            assert_eq!(warnings(&result), ["output_format ACTION_EMULATED"]);
        }
        // What the worker cannot do it is not asked for.
        assert!(worker.images().iter().all(|image| image.wanted_format() == ImageFormat::Unspecified));
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_ignores_the_format_is_corrected() {
    both_ways(async |mode| {
        let claims = pb::ModelCapability {
            formats: [ImageFormat::Png, ImageFormat::Webp].map(Into::into).into(),
            ..model("claims")
        };
        let worker = Worker::new("paint", vec![claims]);
        let gateway = Gateway::over(mode, &worker, &target("claims"));
        let result = gateway.generate(&json!({"output_format": "webp"})).await.unwrap();
        assert_eq!(probe::sniff(&result.images[0].data), Some(ImageFormat::Webp));
        assert_eq!(worker.only_request().image.unwrap().wanted_format(), ImageFormat::Webp);
    })
    .await;
}

fn one_size() -> pb::ModelCapability {
    let sizes = vec![pb::Dimensions { width: 64, height: 64 }, pb::Dimensions { width: 96, height: 64 }];
    pb::ModelCapability {
        size: Some(pb::SizeRule {
            rule: Some(pb::size_rule::Rule::List(pb::SizeList { sizes })),
            auto: false,
        }),
        ..model("fixed")
    }
}

#[tokio::test]
async fn the_nearest_size_is_made_and_reported() {
    both_ways(async |mode| {
        let worker = Worker::new("paint", vec![one_size()]);
        let gateway = Gateway::over(mode, &worker, &target("fixed"));
        let result = gateway.generate(&json!({"size": "60x60"})).await.unwrap();
        assert_eq!((result.images[0].width, result.images[0].height), (64, 64));
        assert_eq!(warnings(&result), ["size ACTION_ADJUSTED"]);
        assert_eq!(report(&result).warnings[0].target, "config");
        assert_eq!(result.applied.unwrap().size.unwrap().text(), "64x64");
        let untouched = gateway.generate(&json!({"size": "96x64"})).await.unwrap();
        assert_eq!(warnings(&untouched), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn resize_after_gives_the_exact_size() {
    both_ways(async |mode| {
        let worker = Worker::new("paint", vec![one_size()]);
        let gateway = Gateway::over(mode, &worker, &target("fixed"));
        let mut image = ask(&json!({"size": "50x34"}));
        image.size_policy = SizePolicy::ResizeAfter.into();
        let request = message(pb::GenerateImageRequest { image: Some(image) }, &[]);
        let result = gateway.send(request).await.unwrap();
        let picture = decoded(&result.images[0]);
        assert_eq!((picture.width(), picture.height()), (50, 34));
        assert_eq!((result.images[0].width, result.images[0].height), (50, 34));
        assert_eq!(warnings(&result), ["size ACTION_EMULATED"]);
        assert_eq!(worker.only_request().image.unwrap().dimensions().unwrap().to_string(), "96x64");
    })
    .await;
}

#[tokio::test]
async fn a_strict_size_skips_the_target_that_lacks_it() {
    both_ways(async |mode| {
        let worker = Worker::new("paint", vec![one_size(), model("a")]);
        let gateway = Gateway::over(mode, &worker, &fallback(&["fixed", "a"]));
        let mut image = ask(&json!({"size": "50x40"}));
        image.size_policy = SizePolicy::Strict.into();
        let result =
            gateway.send(message(pb::GenerateImageRequest { image: Some(image) }, &[])).await.unwrap();
        assert_eq!(report(&result).target, "config.targets[1]");
        assert_eq!(worker.models_called(), ["a"]);
    })
    .await;
}

#[tokio::test]
async fn an_answer_in_another_size_is_reported() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Images(vec![png(32, 30, 0)])]);
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let result = gateway.generate(&json!({"size": "32x32"})).await.unwrap();
        assert_eq!((result.images[0].width, result.images[0].height), (32, 30));
        assert_eq!(report(&result).warnings[0].detail, "32x32 was asked for, 32x30 was answered");
    })
    .await;
}

#[tokio::test]
async fn what_a_model_lacks_is_dropped_and_reported_with_its_target() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", Outcome::fail(Error::new(ErrorKind::Unavailable, "down")));
        let gateway = Gateway::over(mode, &worker, &fallback(&["a", "b"]));
        let result = gateway.generate(&json!({"sampler": "euler", "style": "vivid"})).await.unwrap();
        assert_eq!(warnings(&result), ["sampler ACTION_DROPPED"]);
        assert_eq!(report(&result).warnings[0].target, "config.targets[1]");
        let sent = &worker.images()[1];
        assert_eq!((sent.sampler.as_str(), sent.style.as_str()), ("", "vivid"));
    })
    .await;
}

#[tokio::test]
async fn the_workers_own_warnings_are_passed_on() {
    both_ways(async |mode| {
        let warning =
            pb::Warning { field: "prompt".into(), detail: "translated".into(), ..Default::default() };
        let done = pb::GenerateDone { warnings: vec![warning], ..Default::default() };
        let worker = Worker::paint().script("a", [Outcome::Done(Box::new(done))]);
        let result = Gateway::over(mode, &worker, &target("a")).generate(&json!({})).await.unwrap();
        let warning = &report(&result).warnings[0];
        assert_eq!((warning.detail.as_str(), warning.target.as_str()), ("translated", "config"));
    })
    .await;
}

#[tokio::test]
async fn costs_are_counted_for_every_call_that_was_billed() {
    both_ways(async |mode| {
        let price = pb::Price { item: "image".into(), usd: 0.04, ..Default::default() };
        let priced = pb::ModelCapability { max_n: 2, prices: vec![price], ..model("priced") };
        let worker = Worker::new("paint", vec![priced, model("free")]);
        let gateway = Gateway::over(mode, &worker, &json!({"provider": "paint"}));
        let result = gateway.generate(&json!({"model": "priced", "n": 3})).await.unwrap();
        let lines = &report(&result).cost_lines;
        assert_eq!(lines.iter().map(|line| line.quantity).collect::<Vec<_>>(), [2.0, 1.0]);
        assert_eq!(lines.iter().map(|line| line.attempt).collect::<Vec<_>>(), [1, 2]);
        let total: f64 = lines.iter().filter_map(|line| line.amount_usd).sum();
        assert!((total - 0.12).abs() < 1e-9, "{total}");
        assert_eq!(lines[0].source(), CostSource::Table);
        // No price is not a price of nothing.
        let unknown = gateway.generate(&json!({"model": "free"})).await.unwrap();
        assert_eq!(report(&unknown).cost_lines[0].amount_usd, None);
    })
    .await;
}

#[tokio::test]
async fn usage_is_summed_over_the_calls_of_an_answer() {
    both_ways(async |mode| {
        let usage = pb::Usage { output_image_tokens: Some(100), credits: Some(1.5), ..Default::default() };
        let done = pb::GenerateDone {
            usage: Some(usage),
            upstream_request_id: "req-1".into(),
            reported_cost_usd: Some(0.25),
            ..Default::default()
        };
        let one = pb::ModelCapability { max_n: 1, ..model("one") };
        let worker = Worker::new("paint", vec![one]).script("one", [Outcome::Done(Box::new(done))]);
        let result = Gateway::over(mode, &worker, &target("one")).generate(&json!({"n": 3})).await.unwrap();
        let usage = result.usage.unwrap();
        assert_eq!((usage.output_image_tokens, usage.credits), (Some(300), Some(4.5)));
        assert_eq!(usage.input_text_tokens, None);
        assert_eq!(report(&result).attempts[2].upstream_request_id, "req-1");
        let amounts: Vec<_> = report(&result).cost_lines.iter().map(|line| line.amount_usd).collect();
        assert_eq!(amounts, [Some(0.25); 3]);
    })
    .await;
}

#[tokio::test]
async fn attempts_say_whether_they_cost_money() {
    both_ways(async |mode| {
        let worker = Worker::paint()
            .script("a", Outcome::fail(Error::refused("prompt", "no")))
            .script("b", [Outcome::Truncated])
            .script("c", [Outcome::Withheld]);
        let config = with(fallback(&[]), &json!({"targets": (["nosuch", "a", "b", "c", "d"].map(target))}));
        let result = Gateway::over(mode, &worker, &config).generate(&json!({})).await.unwrap();
        let classes: Vec<_> = report(&result)
            .attempts
            .iter()
            .map(|attempt| (attempt.outcome.as_str(), attempt.billing()))
            .collect();
        assert_eq!(
            classes,
            [
                ("skipped", BillingClass::NotSent),
                ("content_rejected", BillingClass::RejectedUnbilled),
                ("bad_answer", BillingClass::Billed),
                ("content_rejected", BillingClass::Unknown),
                ("ok", BillingClass::Billed),
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn more_images_than_asked_for_are_left_out() {
    both_ways(async |mode| {
        let worker = Worker::paint().script("a", [Outcome::Images(vec![png(8, 8, 0), png(9, 9, 0)])]);
        let result = Gateway::over(mode, &worker, &target("a")).generate(&json!({})).await.unwrap();
        assert_eq!(result.images.iter().map(|image| image.width).collect::<Vec<_>>(), [8]);
    })
    .await;
}

#[tokio::test]
async fn edits_and_variations_carry_their_inputs_to_the_worker() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let input = png(20, 20, 7);
        let mut image = ask(&json!({}));
        image.inputs =
            vec![pb::InputImage { source: Some(Source::Data(input.clone())), ..Default::default() }];
        let edit = Request::new(pb::EditImageRequest { image: Some(image.clone()) });
        assert_eq!(
            gateway.router().edit_image(edit).await.unwrap().into_inner().result.unwrap().images.len(),
            1
        );
        let masked = pb::ImageRequest {
            mask: Some(pb::Mask { data: input.clone(), ..Default::default() }),
            ..image.clone()
        };
        gateway
            .router()
            .edit_image(Request::new(pb::EditImageRequest { image: Some(masked) }))
            .await
            .unwrap();
        image.prompt.clear();
        gateway.router().vary_image(Request::new(pb::VaryImageRequest { image: Some(image) })).await.unwrap();
        let sent = worker.images();
        let operations: Vec<_> = sent.iter().map(pb::ImageRequest::operation).collect();
        assert_eq!(operations, [pb::Operation::Edit, pb::Operation::Inpaint, pb::Operation::Variation]);
        assert!(sent.iter().all(|sent| sent.inputs[0].source == Some(Source::Data(input.clone()))));
    })
    .await;
}

#[tokio::test]
async fn what_nobody_could_serve_is_refused_before_any_call() {
    both_ways(async |mode| {
        let worker = Worker::paint();
        let gateway = Gateway::over(mode, &worker, &target("a"));
        let text = pb::InputImage { source: Some(Source::Data("not an image".into())), ..Default::default() };
        let broken = [
            (pb::ImageRequest { prompt: " ".into(), ..Default::default() }, "prompt"),
            (pb::ImageRequest { n: Some(0), ..ask(&json!({})) }, "n"),
            (pb::ImageRequest { n: Some(51), ..ask(&json!({})) }, "n"),
            (pb::ImageRequest { inputs: vec![text], ..ask(&json!({})) }, "image"),
            (pb::ImageRequest { operation: pb::Operation::Upscale.into(), ..ask(&json!({})) }, "image"),
        ];
        for (image, param) in broken {
            let request = message(pb::GenerateImageRequest { image: Some(image) }, &[]);
            let error = gateway.send(request).await.unwrap_err();
            assert_eq!(
                (error.kind, error.status, error.param.as_deref()),
                (ErrorKind::InvalidRequest, 400, Some(param))
            );
            assert!(!error.report.as_ref().unwrap().trace_id.is_empty());
        }
        assert_eq!(worker.requests().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn the_callers_trace_is_kept_and_never_empty() {
    both_ways(async |mode| {
        let gateway = Gateway::over(mode, &Worker::paint(), &target("a"));
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (headers, expected) in [
            (vec![("x-portkey-trace-id", "mine")], Some("mine")),
            (vec![("traceparent", parent)], Some("0af7651916cd43dd8448eb211c80319c")),
            (vec![("traceparent", parent), ("x-portkey-trace-id", "mine")], Some("mine")),
            (vec![], None),
        ] {
            let result = gateway.generate_with(&json!({}), &headers).await.unwrap();
            let report = report(&result);
            assert_eq!(report.trace_id, expected.unwrap_or(&report.request_id));
            assert!(!report.request_id.is_empty());
        }
    })
    .await;
}
