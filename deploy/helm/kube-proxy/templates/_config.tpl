{{- /* The configuration file: with monitoring, metrics are on the node's addresses unless config says otherwise. */ -}}
{{- define "kube-proxy.config" -}}
{{- $head := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" -}}
{{- $metrics := dict "metricsBindAddress" (ternary "0.0.0.0:10249" "127.0.0.1:10249" .Values.monitoring.enabled) -}}
{{- toYaml (merge (dict) $head .Values.config $metrics) -}}
{{- end -}}
{{- define "kube-proxy.config-name" -}}
kubeproxy-config-{{ include "kube-proxy.config" . | sha256sum | trunc 10 }}
{{- end -}}
{{- define "kube-proxy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
