{{/*
What does not fit together is refused before anything is installed, all problems at once, each with the value's name.
What a single value may be is the business of values.schema.json.
*/}}

{{- define "imagegate.problems" -}}
{{- $root := . -}}
{{- $config := .Values.config -}}
{{- $total := int .Values.deadlines.totalSeconds -}}
{{- $attempt := int .Values.deadlines.attemptSeconds -}}
{{- $components := include "imagegate.components" . | fromJsonArray -}}
{{- $problems := list -}}

{{- /* Who may call. */ -}}
{{- $credentials := include "imagegate.credentialPaths" . | fromJsonArray -}}
{{- if and (not .Values.existingConfigMap) $credentials (not .Values.allowOpenWithCredentials) -}}
{{- if eq (toString $config.auth) "open" -}}
{{- $problems = append $problems (printf "config.auth: `open` lets everybody who reaches the gateway spend the money of %s: name callers in config.api_keys and remove it, or set allowOpenWithCredentials to true" (join ", " $credentials)) -}}
{{- else if not (or $config.api_keys $config.apiKeys $config.jwt_issuers $config.jwtIssuers) -}}
{{- $problems = append $problems (printf "config.api_keys: there are none, and %s would be open to everybody: name callers there or in config.jwt_issuers, or write config.auth: open and set allowOpenWithCredentials to true" (join ", " $credentials)) -}}
{{- end -}}
{{- end -}}

{{- /* What the chart writes into the files. */ -}}
{{- $owned := dict
  "listen" "the chart sets it (network.listenHost)"
  "data_dir" "the chart sets it (router.persistence)"
  "tls" "set tls.mode instead"
  "redis" "set redis.existingSecret instead"
  "store" "set store.existingSecret instead"
  "vault" "set store.existingSecret instead"
  "images" "set images.url instead"
  "shutdown_delay_s" "set drain.delaySeconds instead"
  "shutdown_grace_s" "it follows from deadlines" -}}
{{- range $field, $instead := $owned -}}
{{- range $name := list $field (camelcase $field | untitle) | uniq -}}
{{- if hasKey $config $name -}}
{{- $problems = append $problems (printf "config.%s: %s" $name $instead) -}}
{{- end -}}
{{- range $components -}}
{{- if and .values.config (hasKey .values.config $name) -}}
{{- $problems = append $problems (printf "workers.%s.config.%s: %s" .worker $name $instead) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $provider, $uri := include "imagegate.workerUris" . | fromJson -}}
{{- if hasKey ($config.workers | default dict) $provider -}}
{{- $problems = append $problems (printf "config.workers.%s: an enabled worker of `workers` already serves %s" $provider $provider) -}}
{{- end -}}
{{- end -}}
{{- $providers := dict -}}
{{- range $components -}}
{{- if eq .role "worker" -}}
{{- if hasKey $providers .values.provider -}}
{{- $problems = append $problems (printf "workers.%s.provider: %s is served by workers.%s already; raise its replicas instead" .worker .values.provider (get $providers .values.provider)) -}}
{{- end -}}
{{- $_ := set $providers .values.provider .worker -}}
{{- end -}}
{{- end -}}

{{- /* Secrets do not belong into a ConfigMap, and what the file reads must be there. */ -}}
{{- range $components -}}
{{- $file := ternary $config .values.config (eq .role "router") -}}
{{- if and $file (not (eq .role "shim")) (not (and (eq .role "router") $root.Values.existingConfigMap)) -}}
{{- $at := ternary "config" (printf "workers.%s.config" .worker) (eq .role "router") -}}
{{- $who := ternary "router" (printf "workers.%s" .worker) (eq .role "router") -}}
{{- range splitList "\n" (include "imagegate.plainSecrets" (dict "file" $file "at" $at)) | compact -}}
{{- $problems = append $problems (printf "%s: a secret in plain text can be read in the ConfigMap: write { env: NAME } and name its Secret in %s.credentials" . $who) -}}
{{- end -}}
{{- if not .values.extraEnvFrom -}}
{{- $known := keys (.values.credentials | default dict) -}}
{{- range .values.extraEnv -}}{{- $known = append $known .name -}}{{- end -}}
{{- range splitList "\n" (include "imagegate.envReads" (dict "node" $file "at" $at)) | compact -}}
{{- $read := splitList " " . -}}
{{- if not (has (last $read) $known) -}}
{{- $problems = append $problems (printf "%s: reads the variable %s, which neither %s.credentials nor %s.extraEnv sets" (first $read) (last $read) $who $who) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $id, $key := ($config.virtual_keys | default $config.virtualKeys | default dict) -}}
{{- if and (kindIs "map" $key) (eq (toString (get ($key | default dict) "held_by")) "worker") -}}
{{- $provider := toString $key.provider -}}
{{- range $components -}}
{{- if and (eq .role "worker") (eq (toString .values.provider) $provider) (not .values.existingConfigMap) -}}
{{- if not (hasKey (.values.config.virtual_keys | default dict) $id) -}}
{{- $problems = append $problems (printf "config.virtual_keys.%s: held_by worker, but workers.%s.config.virtual_keys has no %s" $id .worker $id) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Deadlines: whoever waits gives up last. */ -}}
{{- if gt $attempt $total -}}
{{- $problems = append $problems (printf "deadlines.attemptSeconds: one attempt (%d s) cannot take longer than all together, deadlines.totalSeconds (%d s)" $attempt $total) -}}
{{- end -}}
{{- $limits := $config.limits | default dict -}}
{{- range $names := list (list "total_timeout_ms" "totalTimeoutMs" "deadlines.totalSeconds" (mul $total 1000)) (list "attempt_timeout_ms" "attemptTimeoutMs" "deadlines.attemptSeconds" (mul $attempt 1000)) (list "max_body_bytes" "maxBodyBytes" "maxBodyBytes" (int64 .Values.maxBodyBytes)) -}}
{{- range $name := list (index $names 0) (index $names 1) -}}
{{- if hasKey $limits $name -}}
{{- $problems = concat $problems (ternary (list) (list (printf "config.limits.%s: %d contradicts %s, which makes it %d: set that alone" $name (int64 (get $limits $name)) (index $names 2) (int64 (index $names 3)))) (and (eq (int64 (get $limits $name)) (int64 (index $names 3))) (eq $name (index $names 0)))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not .Values.existingConfigMap -}}
{{- range splitList "\n" (include "imagegate.requestTimeouts" (dict "node" ($config.configs | default dict) "at" "config.configs")) | compact -}}
{{- $found := splitList " " . -}}
{{- $ms := int64 (last $found) -}}
{{- if gt $ms (mul $attempt 1000) -}}
{{- $problems = append $problems (printf "%s: %d ms is longer than deadlines.attemptSeconds (%d s), which is how long a worker that ends waits for its calls" (first $found) $ms $attempt) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $components -}}
{{- $c := set . "root" $root -}}
{{- $path := ternary (printf "workers.%s" .worker) .role (eq .role "worker") -}}
{{- $values := .values -}}
{{- with $values.terminationGracePeriodSeconds -}}
{{- $needed := int (include "imagegate.terminationSeconds" $c) -}}
{{- if lt (int .) $needed -}}
{{- $problems = append $problems (printf "%s.terminationGracePeriodSeconds: %d s would kill requests in flight: drain.delaySeconds (%d s) + the longest deadline (%s s) + 10 s are %d s" $path (int .) (int $root.Values.drain.delaySeconds) (include "imagegate.graceSeconds" $c) $needed) -}}
{{- end -}}
{{- end -}}

{{- /* Numbers of pods. */ -}}
{{- $scaling := $values.autoscaling -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $problems = append $problems (printf "%s.autoscaling: minReplicas (%d) is more than maxReplicas (%d)" $path (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if not (or $scaling.targetInFlight $scaling.targetCPUUtilizationPercentage) -}}
{{- $problems = append $problems (printf "%s.autoscaling: has nothing to scale by: set targetInFlight or targetCPUUtilizationPercentage" $path) -}}
{{- end -}}
{{- if and (eq $scaling.engine "keda") $scaling.targetInFlight (not $root.Values.keda.serverAddress) -}}
{{- $problems = append $problems (printf "keda.serverAddress: %s.autoscaling asks Prometheus for requests in flight, and needs its address" $path) -}}
{{- end -}}
{{- end -}}
{{- $fewest := int (include "imagegate.minReplicas" $c) -}}
{{- if and $values.pdb.enabled (gt (int (include "imagegate.maxReplicas" $c)) 1) -}}
{{- $stay := $values.pdb.minAvailable -}}
{{- if eq (toString $stay) "100%" -}}
{{- $problems = append $problems (printf "%s.pdb.minAvailable: 100%% blocks the drain of every node" $path) -}}
{{- else if and (not (kindIs "string" $stay)) (ge (int $stay) $fewest) -}}
{{- $problems = append $problems (printf "%s.pdb.minAvailable: %d of %d pods blocks the drain of their nodes: allow at least one to be missing" $path (int $stay) $fewest) -}}
{{- end -}}
{{- if and (eq (toString $stay) "") (has (toString $values.pdb.maxUnavailable) (list "0" "0%")) -}}
{{- $problems = append $problems (printf "%s.pdb.maxUnavailable: %v blocks the drain of every node" $path $values.pdb.maxUnavailable) -}}
{{- end -}}
{{- end -}}
{{- if and (include "imagegate.singleNodeVolume" $c) (gt (int (include "imagegate.maxReplicas" $c)) 1) -}}
{{- $problems = append $problems (printf "%s.persistence.accessModes: %d pods cannot share a volume without ReadWriteMany" $path (int (include "imagegate.maxReplicas" $c))) -}}
{{- end -}}
{{- if and $root.Values.drain.preStopSleep (hasKey ($values.lifecycle | default dict) "preStop") -}}
{{- $problems = append $problems (printf "%s.lifecycle.preStop: drain.preStopSleep sets it too: choose one" $path) -}}
{{- end -}}
{{- if and (eq (include "imagegate.tlsMode" $root) "existingSecrets") (not (include "imagegate.tlsSecret" $c)) -}}
{{- $problems = append $problems (printf "tls.existingSecrets.%s: missing, with tls.mode existingSecrets every component has one" $path) -}}
{{- end -}}
{{- range $name, $credential := ($values.credentials | default dict) -}}
{{- if and $credential (not (and $credential.existingSecret $credential.key)) -}}
{{- $problems = append $problems (printf "%s.credentials.%s: needs existingSecret and key" $path $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.drain.preStopSleep (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $problems = append $problems (printf "drain.preStopSleep: needs Kubernetes 1.30, this is %s; the binary's own delay needs nothing" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- if and (hasPrefix "http://" (toString .Values.images.endpoint)) (not .Values.images.allowHttp) -}}
{{- $problems = append $problems (printf "images.endpoint: %s is plain text: write https, or set images.allowHttp" .Values.images.endpoint) -}}
{{- end -}}

{{- /* TLS. */ -}}
{{- if eq (include "imagegate.tlsMode" .) "certManager" -}}
{{- if and .Values.tls.certManager.selfSigned .Values.tls.certManager.issuerRef.name -}}
{{- $problems = append $problems "tls.certManager: either selfSigned or issuerRef.name, not both" -}}
{{- else if not (or .Values.tls.certManager.selfSigned .Values.tls.certManager.issuerRef.name) -}}
{{- $problems = append $problems "tls.certManager.issuerRef.name: name a private issuer, or set tls.certManager.selfSigned" -}}
{{- end -}}
{{- end -}}
{{- range $at, $source := dict "tls.ca" .Values.tls.ca "caBundle" .Values.caBundle -}}
{{- if and $source.existingConfigMap $source.existingSecret -}}
{{- $problems = append $problems (printf "%s: either existingConfigMap or existingSecret, not both" $at) -}}
{{- end -}}
{{- end -}}

{{- /* What stands in front. */ -}}
{{- if .Values.ingress.enabled -}}
{{- range $name := list "proxy-read-timeout" "proxy-send-timeout" -}}
{{- $given := get $root.Values.ingress.annotations (printf "nginx.ingress.kubernetes.io/%s" $name) -}}
{{- if and $given (lt (int $given) $total) -}}
{{- $problems = append $problems (printf "ingress.annotations.nginx.ingress.kubernetes.io/%s: %v s end before deadlines.totalSeconds (%d s): images that are paid for would not arrive" $name $given $total) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.httpRoute.enabled -}}
{{- with .Values.httpRoute.timeout -}}
{{- $seconds := int (include "imagegate.durationSeconds" .) -}}
{{- if and (gt $seconds 0) (lt $seconds $total) -}}
{{- $problems = append $problems (printf "httpRoute.timeout: %s (%d s) ends before deadlines.totalSeconds (%d s): images that are paid for would not arrive" . $seconds $total) -}}
{{- end -}}
{{- end -}}
{{- if not .Values.httpRoute.parentRefs -}}
{{- $problems = append $problems "httpRoute.parentRefs: name the Gateway" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) -}}
{{- $problems = append $problems "grpcRoute.parentRefs: name the Gateway" -}}
{{- end -}}
{{- if and (or .Values.grpcRoute.enabled .Values.router.clientService.enabled) .Values.networkPolicy.enabled (not .Values.router.networkPolicy.callers) -}}
{{- $problems = append $problems (printf "router.networkPolicy.callers: %s is for callers that the router's NetworkPolicy does not let in: name them" (ternary "grpcRoute" "router.clientService" .Values.grpcRoute.enabled)) -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- $problems = append $problems "metrics: serviceMonitor and podMonitor would read everything twice: choose one" -}}
{{- end -}}
{{- $problems | toJson -}}
{{- end }}

{{/* Lines with the paths of secrets that stand in a file as they are. `none` is what servers without keys are given. */}}
{{- define "imagegate.plainSecrets" -}}
{{- $at := .at -}}
{{- $fields := dict -}}
{{- range $id, $key := (.file.virtual_keys | default .file.virtualKeys | default dict) -}}
{{- if kindIs "map" $key -}}
{{- range $name, $value := $key -}}
{{- if regexMatch "(api_?key|apiKey|token|[sS]ecret|access_?key|accessKey|service_account|serviceAccount)" $name -}}
{{- $_ := set $fields (printf "virtual_keys.%s.%s" $id $name) $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $i, $key := (.file.api_keys | default .file.apiKeys | default list) -}}
{{- $_ := set $fields (printf "api_keys[%d].key" $i) (get $key "key") -}}
{{- end -}}
{{- $_ := set $fields "webhooks.secret" (get (.file.webhooks | default dict) "secret") -}}
{{- $_ := set $fields "embeddings.api_key" (get (.file.embeddings | default dict) "api_key") -}}
{{- if kindIs "map" .file.otlp -}}
{{- range $name, $value := (.file.otlp.headers | default dict) -}}
{{- if regexMatch "(?i)(auth|key|token|secret|cookie)" $name -}}
{{- $_ := set $fields (printf "otlp.headers.%s" $name) $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $field := keys $fields | sortAlpha -}}
{{- $value := get $fields $field -}}
{{- if and $value (kindIs "string" $value) (not (contains "${" $value)) (ne $value "none") }}
{{ $at }}.{{ $field }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Lines `PATH NAME` of the environment variables that a file reads: { env: NAME } and ${NAME}. */}}
{{- define "imagegate.envReads" -}}
{{- $at := .at -}}
{{- if kindIs "map" .node -}}
{{- if and (hasKey .node "env") (eq (len .node) 1) (kindIs "string" (get .node "env")) }}
{{ $at }} {{ .node.env }}
{{- else -}}
{{- range $key, $value := .node -}}
{{- /* Nothing is filled in below these. */ -}}
{{- if not (has $key (list "override_params" "overrideParams" "default_params" "defaultParams")) -}}
{{- include "imagegate.envReads" (dict "node" $value "at" (printf "%s.%s" $at $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" .node -}}
{{- range $i, $value := .node -}}
{{- include "imagegate.envReads" (dict "node" $value "at" (printf "%s[%d]" $at $i)) -}}
{{- end -}}
{{- else if kindIs "string" .node -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" .node -1 }}
{{ $at }} {{ trimPrefix "${" . | trimSuffix "}" }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Lines `PATH MILLISECONDS` of the request_timeouts in routing configs. */}}
{{- define "imagegate.requestTimeouts" -}}
{{- $at := .at -}}
{{- if kindIs "map" .node -}}
{{- range $key, $value := .node -}}
{{- if has $key (list "request_timeout" "requestTimeout") }}
{{ $at }}.{{ $key }} {{ int64 $value }}
{{- else -}}
{{- include "imagegate.requestTimeouts" (dict "node" $value "at" (printf "%s.%s" $at $key)) -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" .node -}}
{{- range $i, $value := .node -}}
{{- include "imagegate.requestTimeouts" (dict "node" $value "at" (printf "%s[%d]" $at $i)) -}}
{{- end -}}
{{- end -}}
{{- end }}
