{{/*
Alerts. Each tells what callers notice and what to look at; the runbook's anchor is its name in lower case. Ratios need
more than ten requests: at night one failure would be all of them. A counter that begins with its first event has not
increased yet, so that the rare ones are compared with whether they were there before.
*/}}
{{- define "imagegate.alerts" -}}
{{- $series := include "imagegate.series" . -}}
{{- $thresholds := .Values.metrics.prometheusRule.thresholds -}}
- alert: ImagegateNoRouter
  expr: 'absent(up{namespace="{{ .Release.Namespace }}",pod=~"{{ include "imagegate.named" (dict "root" . "suffix" "router") }}-.+"} == 1)'
  for: 5m
  labels: { severity: critical }
  annotations:
    summary: >-
      No router of imagegate is running
    description: >-
      No router in {{ .Release.Namespace }} has answered a scrape for 5 minutes. No image is made.
- alert: ImagegateNoReadyEndpoints
  expr: 'sum by (namespace, pod, service) (imagegate_endpoints{ {{- $series -}} ,state=~"ready|warming"}) == 0'
  for: 1m
  labels: { severity: critical }
  annotations:
    summary: >-
      {{`{{ $labels.pod }} has no endpoint of {{ $labels.service }}`}}
    description: >-
      {{`For a minute {{ $labels.pod }} has known no ready endpoint of {{ $labels.service }}: its targets fail at once, and requests without another target fail with them.`}}
- alert: ImagegateEndpointsEjected
  expr: 'sum by (namespace, service) (increase(imagegate_endpoint_ejections_total{ {{- $series -}} }[15m])) > 5'
  for: 5m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Endpoints of {{ $labels.service }} are ejected again and again`}}
    description: >-
      {{`{{ $value | printf "%.0f" }} times in 15 minutes an endpoint of {{ $labels.service }} was left alone because it failed where others did not.`}}
- alert: ImagegateErrorRate
  expr: 'sum by (namespace) (rate(imagegate_requests_total{ {{- $series -}} ,outcome=~"unavailable|timeout|bad_answer|internal|rate_limited|quota_exhausted"}[10m])) / sum by (namespace) (rate(imagegate_requests_total{ {{- $series -}} }[10m])) > {{ $thresholds.errorRatio }} and sum by (namespace) (increase(imagegate_requests_total{ {{- $series -}} }[10m])) > 10'
  for: 10m
  labels: { severity: critical }
  annotations:
    summary: >-
      {{`{{ $value | humanizePercentage }} of the image requests fail`}}
    description: >-
      {{`All targets of these requests failed, for reasons that are not the callers'. imagegate_attempts_total tells by provider and outcome.`}}
- alert: ImagegateSlow
  expr: 'histogram_quantile(0.95, sum by (namespace, le) (rate(imagegate_request_duration_seconds_bucket{ {{- $series -}} }[15m]))) > {{ $thresholds.slowSeconds }} and sum by (namespace) (increase(imagegate_request_duration_seconds_count{ {{- $series -}} }[15m])) > 10'
  for: 15m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`One image request in twenty takes {{ $value | humanizeDuration }} or longer`}}
    description: >-
      imagegate_phase_duration_seconds tells where the time goes: upstream is the providers', waiting are pauses before retries.
- alert: ImagegateOverloaded
  expr: 'sum by (namespace, pod) (increase(imagegate_overloaded_total{ {{- $series -}} }[10m])) > 10'
  for: 5m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $labels.pod }} has no room for requests`}}
    description: >-
      {{`{{ $value | printf "%.0f" }} requests in 10 minutes were told to come again because {{ $labels.pod }} holds as many bytes as it may.`}}
- alert: ImagegateProviderFails
  expr: 'sum by (namespace, provider) (rate(imagegate_attempts_total{ {{- $series -}} ,outcome=~"unavailable|timeout|bad_answer|internal|rate_limited|quota_exhausted|unauthenticated|permission_denied"}[15m])) / sum by (namespace, provider) (rate(imagegate_attempts_total{ {{- $series -}} }[15m])) > 0.5 and sum by (namespace, provider) (increase(imagegate_attempts_total{ {{- $series -}} }[15m])) > 10'
  for: 15m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $value | humanizePercentage }} of the calls to {{ $labels.provider }} fail`}}
    description: >-
      {{`More than half of the calls to {{ $labels.provider }} have failed for 15 minutes. Fallbacks answer where there are any.`}}
- alert: ImagegateCredentialRefused
  expr: 'sum by (namespace, provider) (increase(imagegate_attempts_total{ {{- $series -}} ,outcome=~"unauthenticated|permission_denied|quota_exhausted"}[10m]) > 0 or imagegate_attempts_total{ {{- $series -}} ,outcome=~"unauthenticated|permission_denied|quota_exhausted"} > 0 unless imagegate_attempts_total{ {{- $series -}} ,outcome=~"unauthenticated|permission_denied|quota_exhausted"} offset 10m) > 0'
  for: 5m
  labels: { severity: critical }
  annotations:
    summary: >-
      {{`{{ $labels.provider }} refuses the credential`}}
    description: >-
      {{`{{ $labels.provider }} says that the credential is wrong, may not do this, or has no money left. That does not pass by itself.`}}
- alert: ImagegateFallbacksRise
  expr: 'sum by (namespace) (rate(imagegate_rescued_requests_total{ {{- $series -}} }[15m])) / sum by (namespace) (rate(imagegate_requests_total{ {{- $series -}} }[15m])) > {{ $thresholds.rescuedRatio }} and sum by (namespace) (increase(imagegate_requests_total{ {{- $series -}} }[15m])) > 10'
  for: 15m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $value | humanizePercentage }} of the image requests need a fallback`}}
    description: >-
      Callers get their images from a later target, after the time and perhaps the money that the first one took.
- alert: ImagegateProviderDown
  expr: 'sum by (namespace, provider) (imagegate_breakers{ {{- $series -}} ,state=~"open|half_open"}) > 0 unless sum by (namespace, provider) (imagegate_breakers{ {{- $series -}} ,state="closed"}) > 0'
  for: 5m
  labels: { severity: critical }
  annotations:
    summary: >-
      {{`All targets of {{ $labels.provider }} are left alone`}}
    description: >-
      {{`For 5 minutes the circuit breakers of all targets of {{ $labels.provider }} that are in use have been open. Requests without another target fail.`}}
- alert: ImagegateBreakerOpen
  expr: 'max by (namespace, provider) (imagegate_breakers_open{ {{- $series -}} }) > 0'
  for: 15m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Targets of {{ $labels.provider }} are left alone`}}
    description: >-
      {{`A circuit breaker of {{ $labels.provider }} has been open for 15 minutes: its targets are not called.`}}
- alert: ImagegateCertificateExpires
  expr: 'min by (namespace, pod) (imagegate_tls_certificate_expiry_timestamp_seconds{ {{- $series -}} }) - time() < {{ $thresholds.certificateDays }} * 86400'
  for: 1h
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`The certificate of {{ $labels.pod }} expires in {{ $value | humanizeDuration }}`}}
    description: >-
      When it has expired the roles no longer talk to each other. A renewed one is taken over from its Secret by itself.
- alert: ImagegateHandshakesRefused
  expr: 'sum by (namespace, pod, reason) (increase(imagegate_tls_refusals_total{ {{- $series -}} }[10m]) > 0 or imagegate_tls_refusals_total{ {{- $series -}} } > 0 unless imagegate_tls_refusals_total{ {{- $series -}} } offset 10m) > 0'
  for: 10m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $labels.pod }} refuses TLS handshakes: {{ $labels.reason }}`}}
    description: >-
      Somebody calls without a certificate that is let in. The log line "TLS handshake refused" names the peer.
- alert: ImagegateRedisDown
  expr: 'max by (namespace, pod) (imagegate_redis_up{ {{- $series -}} }) == 0'
  for: 5m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Redis does not answer {{ $labels.pod }}`}}
    description: >-
      Every router is on its own: an image may be made, and paid for, twice for one idempotency key.
- alert: ImagegateRedisErrors
  expr: 'sum by (namespace, operation) (rate(imagegate_redis_errors_total{ {{- $series -}} }[10m])) > 0.1'
  for: 10m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Redis fails for {{ $labels.operation }}`}}
    description: >-
      Requests go on without what routers share, as when it does not answer in time.
- alert: ImagegateStoreDown
  expr: 'max by (namespace, pod) (imagegate_store_up{ {{- $series -}} }) == 0'
  for: 5m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`The store does not answer {{ $labels.pod }}, or takes nothing that is written`}}
    description: >-
      Requests go on with the configs and keys that were loaded before. Nothing can be changed. Requests that wait for the
      request log are in memory and files; those that there is no room for are lost.
- alert: ImagegateRequestLogLost
  expr: 'sum by (namespace, pod, reason) (increase(imagegate_request_log_lost_total{ {{- $series -}} }[10m]) > 0 or imagegate_request_log_lost_total{ {{- $series -}} } > 0 unless imagegate_request_log_lost_total{ {{- $series -}} } offset 10m) > 0'
  for: 0m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Requests are missing in the request log of {{ $labels.pod }}: {{ $labels.reason }}`}}
    description: >-
      They were answered as usual. What they cost is missing in usage reports, too.
- alert: ImagegateUnknownPrices
  expr: 'sum by (namespace, provider, model) (increase(imagegate_unknown_prices_total{ {{- $series -}} }[1h]) > 0 or imagegate_unknown_prices_total{ {{- $series -}} } > 0 unless imagegate_unknown_prices_total{ {{- $series -}} } offset 1h) > 0'
  for: 0m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`Nobody knows what {{ $labels.provider }} charges for {{ $labels.model }}`}}
    description: >-
      Costs and usage are too low by what it charges. Write its price under `prices`, 0 if it is free.
- alert: ImagegateBudgetNearlySpent
  expr: 'max by (namespace, subject, tenant, name) (imagegate_budget_used_ratio{ {{- $series -}} }) > 0.9'
  for: 0m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`The budget of the {{ $labels.subject }} {{ $labels.name }} is used up to {{ $value | humanizePercentage }}`}}
    description: >-
      When all of it is, its requests are refused with 412 until it resets.
- alert: ImagegateImagesDown
  expr: 'max by (namespace, pod) (imagegate_images_up{ {{- $series -}} }) == 0'
  for: 5m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $labels.pod }} cannot keep images`}}
    description: >-
      Images asked for as url are made, paid for and lost: their requests fail. Those asked for as b64_json go on. The
      request log keeps no thumbnails meanwhile.
- alert: ImagegateConfigRefused
  expr: 'sum by (namespace, pod) (increase(imagegate_config_reloads_total{ {{- $series -}} ,outcome="rejected"}[15m]) > 0 or imagegate_config_reloads_total{ {{- $series -}} ,outcome="rejected"} > 0 unless imagegate_config_reloads_total{ {{- $series -}} ,outcome="rejected"} offset 15m) > 0'
  for: 0m
  labels: { severity: warning }
  annotations:
    summary: >-
      {{`{{ $labels.pod }} refuses its changed file`}}
    description: >-
      The old settings stay in force. The log names every problem of the new file.
{{- end }}
