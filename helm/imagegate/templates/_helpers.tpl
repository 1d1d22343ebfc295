{{/*
Names, labels, images, addresses: what every object needs. Pods are in _pod.tpl, files of the binary in _config.tpl,
what is refused in _problems.tpl.

A component is a dict: `root`, `role` (router, shim or worker), `suffix` of its name, `worker` (a worker's name) and
`values` (its block of values.yaml).
*/}}

{{- define "imagegate.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "imagegate.fullname" -}}
{{- $name := include "imagegate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* FULLNAME-SUFFIX within 63 characters: the end tells components apart, so the beginning is what gets cut. */}}
{{- define "imagegate.named" -}}
{{- $room := int (sub 62 (len .suffix)) -}}
{{- printf "%s-%s" (include "imagegate.fullname" .root | trunc $room | trimSuffix "-") .suffix -}}
{{- end }}

{{/* Never changes during a release's life: selectors are immutable. */}}
{{- define "imagegate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "imagegate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- with .worker }}
imagegate/worker: {{ . }}
{{- end }}
{{- end }}

{{/* Labels of everything that belongs to no single component. */}}
{{- define "imagegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "imagegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/part-of: {{ include "imagegate.name" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "imagegate.componentLabels" -}}
{{ include "imagegate.labels" .root }}
app.kubernetes.io/component: {{ .role }}
{{- with .worker }}
imagegate/worker: {{ . }}
{{- end }}
{{- end }}

{{/* `metadata` of an object: dict with root, name, and optionally component, labels, annotations. */}}
{{- define "imagegate.metadata" -}}
name: {{ .name }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
{{- if .component }}
  {{- include "imagegate.componentLabels" .component | nindent 2 }}
{{- else }}
  {{- include "imagegate.labels" .root | nindent 2 }}
{{- end }}
{{- with .labels }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with mergeOverwrite (deepCopy (.root.Values.commonAnnotations | default dict)) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Sets what `over` has in `base`, in place. Sprig's own merges take false, 0 and "" for absent, and a worker must be able
to switch off what workerDefaults switches on.
*/}}
{{- define "imagegate.overlay" -}}
{{- $base := .base -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $base $key)) -}}
{{- include "imagegate.overlay" (dict "base" (get $base $key) "over" $value) -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := unset $base $key -}}
{{- else -}}
{{- $_ := set $base $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* All components as JSON: router, shim, and each enabled worker with workerDefaults below its own values. */}}
{{- define "imagegate.components" -}}
{{- $components := list
  (dict "role" "router" "suffix" "router" "values" .Values.router)
  (dict "role" "shim" "suffix" "shim" "values" .Values.shim) -}}
{{- $defaults := .Values.workerDefaults -}}
{{- range $name, $worker := .Values.workers -}}
{{- if and $worker $worker.enabled -}}
{{- $values := deepCopy $defaults -}}
{{- include "imagegate.overlay" (dict "base" $values "over" $worker) -}}
{{- $_ := set $values "provider" ($worker.provider | default $name) -}}
{{- $components = append $components (dict "role" "worker" "suffix" (printf "worker-%s" $name) "worker" $name "values" $values) -}}
{{- end -}}
{{- end -}}
{{- toJson $components -}}
{{- end }}

{{/* An image: the component's own settings, else the chart's, behind global.imageRegistry. */}}
{{- define "imagegate.image" -}}
{{- $image := .root.Values.image -}}
{{- $own := .values.image | default dict -}}
{{- $registry := $own.registry | default .root.Values.global.imageRegistry | default $image.registry -}}
{{- $repository := $own.repository | default $image.repository -}}
{{- /* A repository of the component's own has tags and digests of its own too. */ -}}
{{- $inherit := not $own.repository -}}
{{- $digest := $own.digest -}}
{{- if and $inherit (not $digest) (not $own.tag) -}}{{- $digest = $image.digest -}}{{- end -}}
{{- $tag := $own.tag | default (ternary ($image.tag | default .root.Chart.AppVersion) "latest" $inherit) -}}
{{- $name := ternary (printf "%s/%s" $registry $repository) $repository (ne $registry "") -}}
{{- if $digest -}}{{ printf "%s@%s" $name $digest }}{{- else -}}{{ printf "%s:%s" $name (toString $tag) }}{{- end -}}
{{- end }}

{{- define "imagegate.pullPolicy" -}}
{{- (.values.image | default dict).pullPolicy | default .root.Values.image.pullPolicy -}}
{{- end }}

{{- define "imagegate.pullSecrets" -}}
{{- with concat (.Values.global.imagePullSecrets | default list) (.Values.imagePullSecrets | default list) | uniq }}
imagePullSecrets:
{{- range . }}
  - name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "imagegate.serviceAccount" -}}
{{- if .values.serviceAccount.create -}}
{{- .values.serviceAccount.name | default (include "imagegate.named" .) -}}
{{- else -}}
{{- .values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* off, certManager or existingSecrets. YAML 1.1 reads an unquoted off as false. */}}
{{- define "imagegate.tlsMode" -}}
{{- if .Values.tls.mode -}}{{ .Values.tls.mode }}{{- else -}}off{{- end -}}
{{- end }}

{{- define "imagegate.scheme" -}}
{{- ternary "http" "https" (eq (include "imagegate.tlsMode" .) "off") -}}
{{- end }}

{{/* What listeners bind to. Where IPv6 is in use, [::] takes IPv4 too; where it is not, it may not exist. */}}
{{- define "imagegate.listenHost" -}}
{{- $network := .Values.network -}}
{{- $dual := or (has $network.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack")) (has "IPv6" $network.ipFamilies) -}}
{{- $network.listenHost | default (ternary "[::]" "0.0.0.0" $dual) -}}
{{- end }}

{{- define "imagegate.ipFamilies" -}}
{{- with .Values.network.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.network.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The router's address. Its headless Service has every pod's address: who calls balances. */}}
{{- define "imagegate.routerUri" -}}
{{- printf "%s://%s:50051" (include "imagegate.scheme" .) (include "imagegate.named" (dict "root" . "suffix" "router")) -}}
{{- end }}

{{/* What a peer's certificate is asked for: with the namespace, as a private authority may serve several. */}}
{{- define "imagegate.peerName" -}}
{{- printf "%s.%s.svc" (include "imagegate.named" .) .root.Release.Namespace -}}
{{- end }}

{{- define "imagegate.tlsSecret" -}}
{{- $existing := .root.Values.tls.existingSecrets -}}
{{- if eq (include "imagegate.tlsMode" .root) "existingSecrets" -}}
{{- if eq .role "worker" -}}{{ get ($existing.workers | default dict) .worker }}{{- else -}}{{ get $existing .role }}{{- end -}}
{{- else -}}
{{- printf "%s-tls" (include "imagegate.named" .) -}}
{{- end -}}
{{- end }}

{{/* Seconds that requests in flight may need: all attempts at the router and in front of it, one at a worker. */}}
{{- define "imagegate.graceSeconds" -}}
{{- if eq .role "worker" -}}{{ int .root.Values.deadlines.attemptSeconds }}{{- else -}}{{ int .root.Values.deadlines.totalSeconds }}{{- end -}}
{{- end }}

{{/* Seconds that the binary still answers after SIGTERM. With preStopSleep they pass before SIGTERM. */}}
{{- define "imagegate.shutdownDelaySeconds" -}}
{{- if .Values.drain.preStopSleep -}}0{{- else -}}{{ int .Values.drain.delaySeconds }}{{- end -}}
{{- end }}

{{/* The least terminationGracePeriodSeconds: delay, grace, and 10 s to close and exit. */}}
{{- define "imagegate.terminationSeconds" -}}
{{- add (int .root.Values.drain.delaySeconds) (int (include "imagegate.graceSeconds" .)) 10 -}}
{{- end }}

{{/* The fewest pods that there are while nothing is wrong. */}}
{{- define "imagegate.minReplicas" -}}
{{- if .values.autoscaling.enabled -}}{{ int .values.autoscaling.minReplicas }}{{- else -}}{{ int .values.replicas }}{{- end -}}
{{- end }}

{{- define "imagegate.maxReplicas" -}}
{{- if .values.autoscaling.enabled -}}{{ int .values.autoscaling.maxReplicas }}{{- else -}}{{ int .values.replicas }}{{- end -}}
{{- end }}

{{/* What a component has in flight, which says more of its load than its CPU: it waits for images. */}}
{{- define "imagegate.inFlightMetric" -}}
{{- get (dict "router" "imagegate_requests_in_flight" "shim" "imagegate_http_requests_in_flight" "worker" "imagegate_worker_calls_in_flight") .role -}}
{{- end }}

{{/* Matchers of this release's series, as Prometheus names its targets. */}}
{{- define "imagegate.series" -}}
{{- printf "namespace=\"%s\",pod=~\"%s-(router|shim|worker)-.+\"" .Release.Namespace (include "imagegate.fullname" .) -}}
{{- end }}

{{/* Whether a volume of a component can be mounted on one node only. */}}
{{- define "imagegate.singleNodeVolume" -}}
{{- $persistence := .values.persistence | default dict -}}
{{- if and $persistence.enabled (not $persistence.existingClaim) (not (has "ReadWriteMany" $persistence.accessModes)) -}}true{{- end -}}
{{- end }}

{{/* Seconds of a Gateway API duration such as 1m30s; 0 is no limit. */}}
{{- define "imagegate.durationSeconds" -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+(ms|h|m|s)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "ms" . -}}{{- $seconds = add $seconds (div $number 1000) -}}
{{- else if hasSuffix "h" . -}}{{- $seconds = add $seconds (mul $number 3600) -}}
{{- else if hasSuffix "m" . -}}{{- $seconds = add $seconds (mul $number 60) -}}
{{- else -}}{{- $seconds = add $seconds $number -}}{{- end -}}
{{- end -}}
{{- $seconds -}}
{{- end }}

{{/* Another name than the release's pods have: no Service may take it for one of them. */}}
{{- define "imagegate.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "imagegate.name" . | trunc 58 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
Public addresses. Never those of metadata services, which hand out the node's credentials: link-local ones, AWS' over
IPv6, Alibaba's and Oracle's.
*/}}
{{- define "imagegate.internetEgress" -}}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except:
          - 169.254.0.0/16
          - 192.0.0.192/32
          {{- if .denyPrivateRanges }}
          - 10.0.0.0/8
          - 100.64.0.0/10
          - 172.16.0.0/12
          - 192.168.0.0/16
          {{- else }}
          - 100.100.100.200/32
          {{- end }}
    - ipBlock:
        cidr: ::/0
        except:
          - fe80::/10
          {{- if .denyPrivateRanges }}
          - fc00::/7
          {{- else }}
          - fd00:ec2::254/128
          - fd20:ce::254/128
          {{- end }}
  {{- with .ports }}
  ports:
    {{- range . }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
  {{- end }}
{{- end }}


{{/* What a ServiceMonitor and a PodMonitor have in common. */}}
{{- define "imagegate.scraping" -}}
path: /metrics
# `service` is a label of ours; the target's own would displace it.
honorLabels: true
interval: {{ .interval }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
