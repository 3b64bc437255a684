# The versions of the S3 servers that `make stores` builds. A change builds all of them anew.
MINIO := github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
VERSITYGW := github.com/versity/versitygw@v1.8.0
SEAWEEDFS := github.com/seaweedfs/seaweedfs@v0.0.0-20261109003541-7506e5f91cd6
GARAGE := garage@2.5.0
