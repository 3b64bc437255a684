{{- /* The labels and annotations of an object. Arguments: root, and optionally labels and
annotations of this object. */ -}}
{{- define "history.metadata" -}}
labels:
  app.kubernetes.io/name: message-history-server
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- with merge (dict) (.labels | default dict) .root.Values.labels }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "history.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* A duration of the settings, such as 90m, in seconds. */ -}}
{{- define "history.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 "d" 86400 -}}
{{- mul (regexFind "[1-9][0-9]*" . | int64) (get $units (regexFind "[smhd]$" .)) -}}
{{- end }}
