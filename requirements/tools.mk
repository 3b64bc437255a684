# The versions of the programs that `make kubernetes-tools` builds. A change builds all of them anew.
HELM := helm.sh/helm/v4@v4.3.2
HELM_3 := helm.sh/helm/v3@v3.21.4
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
ETCD := go.etcd.io/etcd/server/v3@v3.6.16
KUBERNETES := k8s.io/kubernetes@v1.35.4
